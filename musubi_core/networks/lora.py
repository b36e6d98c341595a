"""LoRA (arXiv 2106.09685): delta = up @ down, for linear maps and convolutions.

Legend: r rank, out and in sizes of the layer, k kernel. down is (r, in, *k), up is (out, r, *1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musubi_core.networks.kind import AdapterSettings, Kind, Tensors, in_dtype_of
from musubi_core.networks.layer import CONVOLUTIONS, Layer

SmallLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
DOWN, UP = "lora_down.weight", "lora_up.weight"


class Lora(nn.Module):
    """The two small layers beside one layer of the base network."""

    def __init__(self, layer: Layer, settings: AdapterSettings, generator: torch.Generator) -> None:
        super().__init__()
        shapes = lora_shapes(layer, settings.rank)
        self.lora_down = _down(layer, settings.rank)
        self.lora_up = _up(layer, settings.rank)
        bound = 1 / math.sqrt(math.prod(shapes[DOWN][1:]))  # Kaiming uniform with a = sqrt(5)
        start = torch.empty(shapes[DOWN]).uniform_(-bound, bound, generator=generator)
        self.lora_down.weight = nn.Parameter(start)
        self.lora_up.weight = nn.Parameter(torch.zeros(shapes[UP]))
        self.dropout = settings.dropout
        self.rank_dropout = settings.rank_dropout
        self.rank_axis = 1 if layer.kernel else -1

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., in) or (B, in, *space) -> the change of the layer's output before alpha / rank."""
        h = self.lora_down(in_dtype_of(self.lora_down.weight, x))
        if self.training and self.dropout:
            h = F.dropout(h, self.dropout)
        if self.training and self.rank_dropout:
            h = drop_ranks(h, self.rank_dropout, axis=self.rank_axis)
        return self.lora_up(h)


def drop_ranks(h: Tensor, chance: float, *, axis: int) -> Tensor:
    """Switch off ranks, one draw per item of the batch shared by all its tokens; survivors grow to match.

    h: (B, ..., r) for axis -1, or (B, r, *space) for axis 1.
    """
    shape = [1] * h.ndim
    shape[0], shape[axis] = h.shape[0], h.shape[axis]
    keep = torch.rand(shape, device=h.device) > chance
    return h * keep.to(h.dtype) * (1 / (1 - chance))


def lora_shapes(layer: Layer, rank: int) -> Mapping[str, tuple[int, ...]]:
    """Shapes of both tensors for a layer and a rank."""
    return {
        DOWN: (rank, layer.inputs, *layer.kernel),
        UP: (layer.outputs, rank, *[1] * len(layer.kernel)),
    }


def lora_delta(tensors: Tensors, shape: tuple[int, ...]) -> Tensor:
    """up @ down in the shape of the weight, in float32. Exact for every kernel, as up looks at one point."""
    return (_matrix(tensors[UP]) @ _matrix(tensors[DOWN])).reshape(shape)


def lora_rank(tensors: Tensors) -> int:
    """The rank that the tensors of one adapter have."""
    return tensors[DOWN].shape[0]


def lora_norm(lora: nn.Module) -> Tensor:
    """Frobenius norm of up @ down from two (r, r) matrices: |BA|^2 = sum of (B'B) * (AA')."""
    down, up = (_matrix(lora.get_parameter(name).detach()) for name in (DOWN, UP))
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()


def shrink_lora(lora: nn.Module, factor: Tensor) -> None:
    """Multiply up @ down by `factor`, half of it (as a root) in each matrix, in place."""
    for name in (DOWN, UP):
        lora.get_parameter(name).detach().mul_(factor.sqrt())


def _matrix(tensor: Tensor) -> Tensor:
    """(n, m, *k) -> (n, m * k), in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).flatten(1)


def _down(layer: Layer, rank: int) -> SmallLayer:
    """(in -> r), with the geometry of the layer.

    Made on the meta device: weights follow, and torch's own start would draw from the global generator.
    """
    if not layer.kernel:
        return nn.Linear(layer.inputs, rank, bias=False, device="meta")
    convolution = CONVOLUTIONS[len(layer.kernel) - 1]
    geometry: Any = {"kernel_size": layer.kernel, "stride": layer.stride, "padding": layer.padding}
    return convolution(layer.inputs, rank, **geometry, bias=False, device="meta")


def _up(layer: Layer, rank: int) -> SmallLayer:
    """(r -> out), point by point."""
    if not layer.kernel:
        return nn.Linear(rank, layer.outputs, bias=False, device="meta")
    convolution = CONVOLUTIONS[len(layer.kernel) - 1]
    one: Any = (1,) * len(layer.kernel)
    return convolution(rank, layer.outputs, one, bias=False, device="meta")


KIND = Kind(
    name="lora",
    tensors=(DOWN, UP),
    aliases={
        "lora_A.weight": DOWN,
        "lora_B.weight": UP,
        "lora_A.default.weight": DOWN,
        "lora_B.default.weight": UP,
    },
    boosted=(UP,),
    make=Lora,
    rank_of=lora_rank,
    shapes=lora_shapes,
    delta=lora_delta,
    norm=lora_norm,
    shrink=shrink_lora,
)
