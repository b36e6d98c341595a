"""Tiny FLUX.1 Kontext networks with random weights in which nothing is zero or one by accident."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from musubi_core.models.flux_kontext.config import FluxKontextConfig
from musubi_core.models.flux_kontext.model import FluxKontext

TINY = FluxKontextConfig(
    hidden=64, heads=2, double_blocks=2, single_blocks=3, mlp_width=256, text_width=48, pooled_width=32
)
SIZE = (8, 12)  # rows and columns of the target's latent


def make_network(seed: int = 0, config: FluxKontextConfig = TINY, **options: Any) -> FluxKontext:
    """The tiny network: sizes by keyword, then constructor options. The weights depend on the seed."""
    sizes = {name: options.pop(name) for name in list(options) if hasattr(config, name)}
    network = FluxKontext(replace(config, **sizes), **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.normal_(std=0.08, generator=generator)
            if name.endswith("_norm.scale"):
                parameter.add_(1)
    return network.requires_grad_(False)


def make_inputs(
    *references: tuple[int, int],
    size: tuple[int, int] = SIZE,
    config: FluxKontextConfig = TINY,
    batch: int = 2,
    seed: int = 1,
) -> dict[str, Any]:
    """Keyword arguments of `FluxKontext.forward`, with references of the given rows and columns."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "x": noise(config.channels, *size),
        "t": torch.tensor([0.3, 0.77])[:batch],
        "text": noise(7, config.text_width),
        "pooled": noise(config.pooled_width),
        "guidance": torch.tensor([1.0, 2.5])[:batch],
        "references": tuple(noise(config.channels, *reference) for reference in references),
    }
