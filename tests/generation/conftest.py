"""Whole tiny models from their real files: text encoders, VAE and networks, for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from musubi_core.config import build, options_of
from musubi_core.generation.conditions import Conditions, prepare
from musubi_core.generation.networks import Networks
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.settings import DrawSettings, settle_prompt
from musubi_core.generation.text import encode_prompts
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec, EncoderRequest, LatentCodec, LoadRequest, TinyFiles

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """A model that can be drawn with, all in float32 on the CPU."""

    spec: ArchSpec
    files: TinyFiles
    options: Any  # settled train options
    codec: LatentCodec
    networks: Networks

    def settled(self, text: str = "a red ball", **flags: Any) -> DrawSettings:
        flags = {"width": 32, "height": 48, "steps": 3, "frames": 5, "seed": 1, **flags}
        prompt = Prompt(text=text, **flags)
        return settle_prompt(prompt, self.spec, self.options, experts=self.networks.experts, seed=7)[0]

    def conditions(self, text: str = "a red ball", **flags: Any) -> Conditions:
        settings = self.settled(text, **flags)
        request = EncoderRequest(device=CPU, dtype=torch.float32, options=self.own(self.spec.text_options))
        texts = encode_prompts(self.spec, [settings], request)
        assert texts is not None
        return prepare(self.spec, settings, texts, codec=self.codec, options=self.options)

    def own(self, cls: type) -> Any:
        return own_options(cls, self.files)


def own_options(cls: type, files: TinyFiles) -> Any:
    known = {info.name for info in options_of(cls)}
    return build(
        cls, {name: value for name, value in files.options.items() if name in known}, where="the tiny files"
    )


def open_tiny(spec: ArchSpec, files: TinyFiles) -> Tiny:
    options = spec.settle(files.dit, own_options(spec.train_options, files))
    experts = spec.experts(files.dit, options)
    models: Sequence[nn.Module] = [
        spec.load(LoadRequest(path=expert.path, device=CPU, dtype=torch.float32, options=options)).eval()
        for expert in experts
    ]
    request = EncoderRequest(
        device=CPU,
        dtype=torch.float32,
        options=own_options(spec.latent_options, files),
        weights=files.vae,
    )
    networks = Networks(
        spec=spec, options=options, experts=experts, at_work=lambda side: models[side], device=CPU
    )
    return Tiny(
        spec=spec,
        files=files,
        options=options,
        codec=spec.latents(request).open(),
        networks=networks,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """A name of the registry, or "wan/<task>" for a member of that family -> its tiny model, opened once."""
    opened: dict[str, Tiny] = {}

    def get(name: str) -> Tiny:
        if name not in opened:
            folder: Path = tmp_path_factory.mktemp(name.replace("/", "_"))
            arch, _, task = name.partition("/")
            spec = architecture(arch)
            opened[name] = open_tiny(spec, _write(spec, folder, task))
        return opened[name]

    return get


def _write(spec: ArchSpec, folder: Path, task: str) -> TinyFiles:
    if not task:
        return spec.write_tiny(folder, 0)
    from musubi_core.models.wan.tiny import write_tiny_variant

    return write_tiny_variant(folder, 0, task=task)
