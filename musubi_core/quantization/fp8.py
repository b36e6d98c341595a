"""Weights as 8-bit codes and float32 scales, and back. Pure functions.

Scales are calculated, used and stored in float32: a scale that is rounded after it was used adds an error of
its own. Shapes of scales: see `Scheme`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.quantization.scheme import Scheme

FP8 = torch.float8_e4m3fn
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # of a group of zeros; smaller ones would divide inexactly
CHUNK = {"cpu": 1 << 18}  # weights at a time: what the processor's cache holds as float32
LARGE_CHUNK = 1 << 24  # on other devices
SAMPLED_ROWS = 8  # of each weight, about, whose error is measured

Rows = Callable[[int, int], Tensor]  # (start, stop) -> that range of a weight's first axis, any float dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """codes: like the weight, fp8.  scale: float32, see `Scheme`.  weight = codes * scale."""

    codes: Tensor
    scale: Tensor


def quantise(weight: Tensor, scheme: Scheme, *, name: str = "the weight") -> Quantised:
    """The codes nearest to a weight of any shape, with the scheme that fits it, on the weight's device.

    Raises BadFileError with `name` when the weight holds NaN or infinity.
    """
    rows = weight.reshape(1) if weight.ndim == 0 else weight
    found = quantise_rows(
        lambda start, stop: rows[start:stop],
        weight.shape if weight.ndim else (1,),
        scheme,
        device=weight.device,
        name=name,
    )
    return Quantised(codes=found.codes.reshape(weight.shape), scale=found.scale)


def quantise_rows(
    read: Rows, shape: Sequence[int], scheme: Scheme, *, device: torch.device, name: str
) -> Quantised:
    """`quantise` for a weight that is read in parts and never held whole in float32.

    One scale per tensor takes two passes over `read`. The result lies on `device`.
    """
    scheme = scheme.fitting(shape)
    largest = torch.finfo(DTYPES[scheme.format]).max
    codes = torch.empty(tuple(shape), dtype=DTYPES[scheme.format], device=device)
    scale = torch.empty(scheme.scale_shape(shape), dtype=torch.float32, device=device)
    if scheme.granularity == "tensor":
        scale.zero_()
        for part in _parts(shape, device):
            torch.maximum(scale, read(*part).to(device, torch.float32).abs().amax(), out=scale)
        scale.copy_(_scale_of(scale, largest))
    for start, stop in _parts(shape, device):
        rows = _grouped(read(start, stop).to(device, torch.float32), scheme)
        if scheme.granularity == "tensor":
            mine = scale
        else:
            mine = scale[start:stop].copy_(_scale_of(rows.abs().amax(dim=-1, keepdim=True), largest))
        # The quotient may exceed the largest code by a rounding, and torch's casts do not agree about that.
        rows = rows.div(mine).clamp_(-largest, largest)
        codes[start:stop].copy_(rows.view(codes[start:stop].shape))
    if not scale.isfinite().all():  # NaN and infinity are always the largest of their group
        raise BadFileError(
            f"{name} holds NaN or infinity, which has no 8-bit form. The file is damaged; fetch it again, or "
            "use a version of it in another precision."
        )
    return Quantised(codes=codes, scale=scale)


def dequantise(codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight that the codes stand for: the float32 product, rounded once to `dtype`. None: no scales."""
    if scale is None:
        return codes.to(dtype)
    # A card multiplies the two types as they are. The processor would make float32 copies of both sides.
    weight = codes.to(torch.float32 if codes.device.type == "cpu" else dtype)
    grouped = weight.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else weight
    grouped.mul_(scale if scale.ndim else scale.reshape([1] * weight.ndim))  # a bare number would be rounded
    return weight.to(dtype)


def relative_error(weight: Tensor, codes: Tensor, scale: Tensor | None) -> float:
    """Root of the squared error over root of the squared weights; 0 for a weight of zeros."""
    weight = weight.to(torch.float64)
    error = (dequantise(codes, scale, torch.float32) - weight).square().sum()
    total = weight.square().sum()
    return (error / total).sqrt().item() if total else 0.0


def sampled_error(read: Rows, made: Quantised) -> float:
    """`relative_error` of some rows: multiplying out all of them would take longer than quantising did."""
    count = made.codes.shape[0]
    rows = torch.arange(0, count, max(1, count // SAMPLED_ROWS))
    weight = torch.cat([read(row, row + 1).clone() for row in rows.tolist()])
    there = rows.to(made.codes.device)
    codes = made.codes.view(torch.uint8)[there].view(made.codes.dtype).cpu()
    return relative_error(weight, codes, made.scale[there].cpu() if made.scale.ndim else made.scale.cpu())


def to_fp8(weight: Tensor) -> Tensor:
    """The nearest e4m3fn values. Out-of-range weights become the largest one: torch's own cast gives NaN."""
    if weight.dtype == FP8:
        return weight
    largest = torch.finfo(FP8).max
    return weight.clamp(-largest, largest).to(FP8)


def _scale_of(peak: Tensor, largest: float) -> Tensor:
    """The scale that maps the largest magnitude of a group to the largest code."""
    return peak.div(largest).clamp_min_(SMALLEST_SCALE)


def _grouped(rows: Tensor, scheme: Scheme) -> Tensor:
    """Rows with the axis of a group last: (r, in) -> (r, in / block, block) for blocks."""
    return rows.unflatten(1, (-1, scheme.block)) if scheme.granularity == "block" else rows


def _parts(shape: Sequence[int], device: torch.device) -> list[tuple[int, int]]:
    """Ranges of the first axis, each about as many weights as are worth working on at once."""
    count = CHUNK.get(device.type, LARGE_CHUNK)
    step = max(1, count // max(1, prod(shape[1:])))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
