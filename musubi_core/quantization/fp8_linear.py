"""Linear layers whose weight is kept as plain float8_e4m3fn, without scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn


def to_fp8(weight: Tensor) -> Tensor:
    """The nearest e4m3fn values. Out-of-range weights become the largest one: torch's own cast gives NaN."""
    if weight.dtype == FP8:
        return weight
    largest = torch.finfo(FP8).max
    return weight.clamp(-largest, largest).to(FP8)


class Fp8Linear(nn.Linear):
    """A frozen linear layer with an e4m3fn weight, calculated in the dtype of its input.

    weight: (out, in) float8_e4m3fn.  bias: (out,) or None, any float dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), same dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


def use_fp8_linears(model: nn.Module) -> None:
    """Replace every linear layer that was loaded with an e4m3fn weight, in place, sharing the weight."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == FP8:
                setattr(parent, name, Fp8Linear(child.weight, child.bias))
