"""A dataset on disk and encoders that are instant and countable, for tests of the caching jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from musubi_core.events import Event, Warned
from musubi_core.models.hunyuan_video.spec import SPEC
from musubi_core.models.spec import LatentEncoding, Pixels, TextPass
from musubi_core.training import cache_jobs
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_report import CacheReport


@dataclass
class Encoders:
    """Stand-ins for VAE and text encoders. They count what they are asked for."""

    identity: str = "weights 1"
    settings: dict[str, Any] = field(default_factory=lambda: {"posterior": "sample"})
    text_identity: dict[str, str] = field(default_factory=lambda: {"llm": "l1", "clipL": "c1"})
    opened: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)  # batch sizes the VAE saw
    captions: list[tuple[str, str]] = field(default_factory=list)  # (pass, caption)
    nan_below: float = -1.0  # pixels darker than this come out as NaN

    def latents(self, request: object) -> LatentEncoding:
        return LatentEncoding(identity=self.identity, settings=self.settings, open=self._open_vae)

    def _open_vae(self) -> Encoders:
        self.opened.append("vae")
        return self

    def encode(self, pixels: Pixels) -> list[dict[str, Tensor]]:
        self.groups.append(len(pixels.frames))
        return [self._one(frames, seed) for frames, seed in zip(pixels.frames, pixels.seeds, strict=True)]

    def _one(self, frames: Tensor, seed: int) -> dict[str, Tensor]:
        count, height, width = frames.shape[:3]
        shape = (16, (count - 1) // 4 + 1, height // 8, width // 8)
        mean = frames.float().mean()
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        value = mean / 255 if mean >= self.nan_below else torch.tensor(float("nan"))
        return {"latents": (value + 0.01 * noise).half()}

    def texts(self, request: object) -> tuple[TextPass, ...]:
        return tuple(self._pass(name) for name in ("llm", "clipL"))

    def _pass(self, name: str) -> TextPass:
        def open_encoder():
            self.opened.append(name)
            return encode

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            self.captions += [(name, caption) for caption in captions]
            return [
                {
                    name: torch.full((4,), float(len(caption) if "nan" not in caption else "nan")).half(),
                    f"{name}_mask": torch.ones(4, dtype=torch.int64),
                }
                for caption in captions
            ]

        return TextPass(
            name=name,
            tensors=(name, f"{name}_mask"),
            identity=self.text_identity[name],
            settings={},
            open=open_encoder,
        )


class Stage:
    """A folder with media, a dataset file and a cache folder. encoders: None for HunyuanVideo's own."""

    def __init__(self, root: Path, encoders: Encoders | None) -> None:
        self.root = root
        self.architecture = SPEC.name if encoders is None else None
        self.encoders = encoders
        self.media, self.cache = root / "media", root / "cache"
        self.media.mkdir()
        self.events: list[Event] = []
        self.keys: dict[str, Any] = {"resolution": [64, 32], "image_directory": str(self.media)}

    def picture(self, name: str, caption: str | None = "a cat", *, grey: int = 100, size=(64, 32)) -> Path:
        path = self.media / name
        Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    @property
    def toml(self) -> Path:
        path = self.root / "dataset.toml"
        keys = {"cache_directory": str(self.cache), **self.keys}
        lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
        path.write_text("[[datasets]]\n" + "\n".join(lines), encoding="utf-8")
        return path

    def latents(self, *, should_stop=lambda: False, **options) -> CacheReport:
        self.events.clear()
        options = {"vae": Path("vae"), "device": "cpu", "architecture": self.architecture, **options}
        config = CacheLatentsConfig(dataset_config=self.toml, **options)
        return cache_jobs.cache_latents(config, self.events.append, should_stop)

    def text(self, *, should_stop=lambda: False, **options) -> CacheReport:
        self.events.clear()
        options = {"device": "cpu", "architecture": self.architecture, **options}
        config = CacheTextConfig(dataset_config=self.toml, **options)
        return cache_jobs.cache_text(config, self.events.append, should_stop)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.cache.glob("*.safetensors"))}

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # for texts, numbers and lists both languages agree


def use(encoders: Encoders, monkeypatch) -> None:
    """Let the jobs find these encoders in the place of HunyuanVideo's."""
    spec = replace(SPEC, latents=encoders.latents, texts=encoders.texts)
    monkeypatch.setattr(cache_jobs, "architectures", lambda: (spec,))
