"""Which precision an encoder calculates in."""

from __future__ import annotations

import torch


def math_dtype(asked: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 in place of float16 on a CPU, whose float16 kernels are slow or absent; else what was asked."""
    return torch.float32 if device.type == "cpu" and asked == torch.float16 else asked


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float16 -> "float16"."""
    return str(dtype).removeprefix("torch.")
