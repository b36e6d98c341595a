"""What the rest of the room must know of one kind of adapter (LoRA, later LoHa, LoKr, ...).

A new kind is one file with a `KIND`, and one line in `kinds.py`. Names of tensors are the suffixes in our
files and the parameter names of the adapter's module at once: "lora_up.weight".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from musubi_core.networks.layer import Layer

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """How one adapter is made. Dropouts act in training mode only."""

    rank: int
    alpha: float  # the strength of the adapter is alpha / rank
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The functions of one kind. `delta` below is the change of a weight before alpha / rank."""

    name: str
    tensors: tuple[str, ...]  # own names, in the order of the optimizer
    aliases: Mapping[str, str]  # other suffixes that files may use -> own name
    boosted: tuple[str, ...]  # tensors that LoRA+ trains faster: those that start at zero
    make: Callable[[Layer, AdapterSettings, torch.Generator], nn.Module]  # its forward: x -> change of y
    rank_of: Callable[[Tensors], int]
    shapes: Callable[[Layer, int], Mapping[str, tuple[int, ...]]]  # expected, at a rank
    delta: Callable[[Tensors, tuple[int, ...]], Tensor]  # (tensors, weight shape) -> float32 delta
    norm: Callable[[nn.Module], Tensor]  # Frobenius norm of delta, a scalar on the device
    shrink: Callable[[nn.Module, Tensor], None]  # multiply delta by a scalar tensor, in place


def in_dtype_of(weight: Tensor, x: Tensor) -> Tensor:
    """x as the adapter can multiply it: autocast casts on its own, otherwise x takes the weight's dtype."""
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)
