"""Random weights that behave like trained ones in size: for the tiny models of the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_weights(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Norm weights near one, biases near zero, embeddings and linear maps that keep numbers of order one.

    shapes: by parameter name, in the order of drawing. float32, nothing is zero or one by accident.
    """
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if "norm" in name and not name.endswith("bias") else 0.05 * noise
    if "embed_tokens" in name or "_embedding." in name or name == "shared.weight":
        return 0.5 * noise
    return noise / noise[0].numel() ** 0.5
