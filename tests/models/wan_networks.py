"""Tiny Wan networks of every kind, with random weights in which nothing is zero or one by accident."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import Wan

TINY = WanConfig(hidden=128, heads=2, layers=2, mlp_width=192, text_width=32)
PICTURES = {"picture_width": 1280}
# By musubi-tuner's task: what its released network has of inputs, outputs and branches.
KINDS: dict[str, dict[str, int]] = {
    "t2v-14B": {},
    "i2v-14B": {"in_channels": 36, **PICTURES},
    "flf2v-14B": {"in_channels": 36, **PICTURES, "picture_tokens": 514},
    "t2v-14B-FC": {"in_channels": 48, **PICTURES},
    "i2v-A14B": {"in_channels": 36},
    "ti2v-5B": {"in_channels": 48, "out_channels": 48},
}
SIZE = (3, 8, 12)  # latent frames, rows, columns
TEXT_ROWS = 512


def config_of(task: str, **sizes: Any) -> WanConfig:
    return replace(TINY, **{**KINDS[task], **sizes})


def make_network(task: str = "t2v-14B", seed: int = 0, **options: Any) -> Wan:
    """The tiny network of a task: sizes by keyword, then constructor options. Weights depend on the seed."""
    sizes = {name: options.pop(name) for name in list(options) if hasattr(TINY, name)}
    network = Wan(config_of(task, **sizes), **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.08, generator=generator)
            norm = "norm" in name or name in ("img_emb.proj.0.weight", "img_emb.proj.4.weight")
            if norm and name.endswith("weight"):
                parameter.add_(1)
    return network.requires_grad_(False)


def make_inputs(
    task: str = "t2v-14B",
    *,
    size: tuple[int, int, int] = SIZE,
    batch: int = 2,
    seed: int = 1,
    config: WanConfig | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `Wan.forward` that a batch of the task has."""
    config = config or config_of(task)
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    own = 48 if config.out_channels == 48 else 16
    inputs = {
        "x": noise(own, *size),
        "t": torch.tensor([300.0, 773.5])[:batch],
        "text": noise(TEXT_ROWS, config.text_width),
    }
    if config.in_channels > own:
        inputs["beside"] = noise(config.in_channels - own, *size)
    if config.picture_width:
        inputs["pictures"] = noise(config.picture_tokens or 257, config.picture_width)
    return inputs


def one_of(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    """Sample `index` of a batch, alone."""
    return {name: value[index : index + 1] for name, value in inputs.items()}
