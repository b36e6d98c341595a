"""`generate` on tiny models: files, made-up LoRAs, and one call with what it told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from musubi_core.config import build, options_of
from musubi_core.events import Event, FileWritten, Note, ShouldStop, Warned, never
from musubi_core.files.tensors import write_tensors
from musubi_core.generation.config import GenerateConfig, arch_options_class
from musubi_core.generation.job import generate
from musubi_core.models.registry import architecture
from musubi_core.models.spec import LoadRequest, TinyFiles
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"prompt": "a cat", "video_size": [64, 96], "infer_steps": 2, "seed": 7}


@dataclass(slots=True, kw_only=True)
class Call:
    """What one call wrote and told."""

    written: tuple[Path, ...]
    events: list[Event] = field(default_factory=list)

    @property
    def lines(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Note | Warned))

    def told_of(self, what: str) -> list[Path]:
        return [one.path for one in self.events if isinstance(one, FileWritten) and one.what == what]

    @property
    def latent(self) -> Tensor:
        """Of the one latent file that was written."""
        (path,) = self.told_of("latent")
        return load_file(path)["latent"]


@cache
def tiny(name: str) -> TinyFiles:
    """Files of a tiny model, made once per process."""
    return architecture(name).write_tiny(Path(mkdtemp(prefix=f"tiny-{name}-")), 3)


def values(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Options by name for a small picture or clip."""
    files = tiny(name)
    frames = {"video_length": 5} if architecture(name).latent.temporal else {}
    own = {"dit": files.dit, "vae": files.vae, **files.options}
    return {**SMALL, **frames, **own, "save_path": folder, **more}


def config_of(name: str, options: dict[str, Any]) -> GenerateConfig:
    """Options by name, the architecture's own among them, as the command line would sort them."""
    classes = (GenerateConfig, arch_options_class(architecture(name)))
    known = [{one for one in options if one in names_of(cls)} for cls in classes]
    assert set(options) == known[0] | known[1], set(options) - known[0] - known[1]
    common, own = (
        build(cls, {one: options[one] for one in names}, where="test")
        for cls, names in zip(classes, known, strict=True)
    )
    return replace(common, arch_options=own)


def call(name: str, options: dict[str, Any], should_stop: ShouldStop = never, **keywords: Any) -> Call:
    """`generate` with options by name."""
    told: list[Event] = []
    written = generate(config_of(name, options), told.append, should_stop, **keywords)
    return Call(written=written, events=told)


def names_of(cls: type) -> set[str]:
    return {name for info in options_of(cls) for name in (info.name, *info.aliases)}


def drawn(name: str, folder: Path, should_stop: ShouldStop = never, **more: Any) -> Call:
    """One small drawing."""
    return call(name, values(name, folder, **more), should_stop)


def write_lora(
    name: str, path: Path, *, seed: int = 0, dit: Path | None = None, strength: float = 0.2, rank: int = 4
) -> Path:
    """A LoRA for every layer that is usually trained, with random numbers that change the picture."""
    spec = architecture(name)
    model = spec.load(
        LoadRequest(path=dit or tiny(name).dit, device=torch.device("meta"), dtype=torch.float32)
    )
    generator = torch.Generator().manual_seed(seed)
    network = build_network(
        model,
        NetworkConfig(network_dim=rank, network_alpha=rank / 2),
        Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui),
        generator=generator,
    )
    for key, parameter in network.named_parameters():
        if key.endswith("lora_up.weight"):
            with torch.no_grad():
                parameter.normal_(std=strength / rank**0.5, generator=generator)
    write_tensors(path, lora_tensors(network), {})
    return path


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, in parts of the largest number."""
    return float((one - other).abs().max() / other.abs().max())


def stop_after(calls: int) -> Callable[[], bool]:
    """`should_stop` that is true from the next call on."""
    left = [calls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return should_stop
