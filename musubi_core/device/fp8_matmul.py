"""Multiplication of fp8 matrices by torch._scaled_mm, which newer cards do twice as fast as bf16."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
MULTIPLE = 16  # both sizes of a weight must be multiples of it


@cache
def why_no_fp8_matmul(device: torch.device, *, by_row: bool) -> str:
    """Why `fp8_matmul` cannot be used on this device, or "". by_row: with a scale for each row.

    Tried out, because cards, drivers and torch's versions all have a say.
    """
    if device.type != "cuda":
        return f"it needs an NVIDIA card, and this is {device.type}"
    weight = torch.zeros(MULTIPLE, MULTIPLE, dtype=FP8, device=device)
    scale = torch.ones((MULTIPLE, 1) if by_row else (), device=device)
    try:
        fp8_matmul(torch.zeros(MULTIPLE, MULTIPLE, dtype=torch.bfloat16, device=device), weight, scale, None)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        name = torch.cuda.get_device_name(device)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"{name} with torch {torch.__version__} cannot do it ({reason})"
    return ""


def fits_fp8_matmul(outputs: int, inputs: int) -> bool:
    """Whether a weight of this size can be multiplied."""
    return outputs % MULTIPLE == 0 and inputs % MULTIPLE == 0


def fp8_matmul(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x @ (codes * scale).T + bias with x rounded to e4m3, one scale per row of x or one for all of it.

    x: (..., in) bf16, fp16 or fp32.  codes: (out, in) fp8.  scale: (out, 1) or (), float32.  -> (..., out),
    dtype of x. One scale of the weight means one of x: the product takes both by row or neither.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    peak = rows.abs().amax(dim=-1, keepdim=True) if scale.ndim else rows.abs().amax()
    largest = torch.finfo(FP8).max
    x_scale = peak.div(largest).clamp_min(torch.finfo(torch.float32).tiny)
    x_codes = rows.div(x_scale).clamp(-largest, largest).to(FP8)
    product = torch._scaled_mm(
        x_codes,
        codes.t(),
        scale_a=x_scale,
        scale_b=scale.t().contiguous() if scale.ndim else scale,
        out_dtype=torch.bfloat16,  # the only one that scales by row come with
    )
    product = product.to(x.dtype) if bias is None else product.to(x.dtype) + bias
    return product.reshape(*x.shape[:-1], codes.shape[0])
