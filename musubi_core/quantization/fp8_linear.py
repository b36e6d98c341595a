"""A frozen linear layer whose weight is kept in 8 bits, with or without scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from musubi_core.device.fp8_matmul import fits_fp8_matmul, fp8_matmul
from musubi_core.quantization.fp8 import DTYPES, FP8, dequantise
from musubi_core.quantization.scheme import QuantisationConfig


class Fp8Linear(nn.Linear):
    """Calculates in the dtype of its input, or of autocast, with the weight multiplied out for the moment.

    weight: (out, in) fp8 codes.  scale_weight: float32, see `Scheme`, or None for plainly cast weights.
    bias: (out,) or None, any float dtype.  Moving the layer never casts codes or scales.
    """

    scale_weight: Tensor | None

    def __init__(
        self, weight: Tensor, scale: Tensor | None, bias: Tensor | None, *, fast: bool = False
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_buffer("scale_weight", scale)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.fast = fast  # multiply in fp8; only where device.fp8_matmul says that it can be done
        self.error: float | None = None  # relative RMS error against the weight it was made from, if known
        self.upcast = False  # it was made from weights that were fp8 already

    @property
    def by_row(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale_weight is not None and self.scale_weight.ndim > 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype it calculates in."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(x.to(dtype), self.weight, self.scale_weight, bias, self.fast)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """What `to`, `cuda`, `half`, ... call. Codes and scales are shown to `fn` as whole numbers, which it
        moves but does not cast: codes cast to bf16 would be a weight without its scales.
        """

        def moved(tensor: Tensor) -> Tensor:
            if tensor is not self.weight and tensor is not self.scale_weight:
                return fn(tensor)
            whole = torch.uint8 if tensor.element_size() == 1 else torch.int32
            return fn(tensor.view(whole)).view(tensor.dtype)

        super()._apply(moved, recurse)
        return self

    def extra_repr(self) -> str:
        scale = "none" if self.scale_weight is None else list(self.scale_weight.shape)
        return f"{super().extra_repr()}, {self.weight.dtype}, scale={scale}"


class _Product(torch.autograd.Function):
    """x, codes, scale, bias -> x @ weight.T + bias, without keeping the weight for the backward pass.

    nn.Linear on a multiplied-out weight would: a whole model in bf16 between forward and backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor | None, bias: Tensor | None, fast: bool
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        if fast and scale is not None:
            return fp8_matmul(x, codes, scale, bias)
        return functional.linear(x, dequantise(codes, scale, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        inputs = grad @ dequantise(codes, scale, grad.dtype) if ctx.needs_input_grad[0] else None
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return inputs, None, None, bias, None


def use_fp8_linears(model: nn.Module) -> None:
    """Replace every linear layer that was loaded with an fp8 weight, in place, sharing the weight."""
    for parent, name, child in _linears(model):
        if child.weight.dtype == FP8:
            setattr(parent, name, Fp8Linear(child.weight, None, child.bias))


def put_fp8_linears(model: nn.Module, config: QuantisationConfig) -> dict[str, Fp8Linear]:
    """Replace the linear layers that `config` covers by empty 8-bit ones, in place; by dotted name.

    The model has no memory yet (meta device); the new layers have none either.
    """
    names = {id(module): name for name, module in model.named_modules()}
    placed = {}
    for parent, name, child in _linears(model):
        if not config.covers(f"{names[id(child)]}.weight"):
            continue
        codes, scale = torch.empty_like(child.weight, dtype=FP8), None
        if config.scheme is not None:
            fitting = config.scheme.fitting(codes.shape)
            codes = torch.empty_like(child.weight, dtype=DTYPES[fitting.format])
            scale = torch.empty(fitting.scale_shape(codes.shape), dtype=torch.float32, device="meta")
        fast = config.fast and scale is not None and scale.ndim < 3 and fits_fp8_matmul(*codes.shape)
        layer = Fp8Linear(codes, scale, child.bias, fast=fast)
        setattr(parent, name, layer)
        placed[names[id(child)]] = layer
    return placed


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every plain linear layer with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
