"""Between frames as media files hold them and frames as a video VAE wants them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_signed(frames: Tensor, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, F, H, W, 3) uint8 -> (B, 3, F, H, W) in -1..1. Moved as bytes, scaled on the device in float32."""
    moved = frames.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)
    return (moved.to(torch.float32) / 127.5 - 1.0).to(dtype).contiguous()


def to_bytes(frames: Tensor) -> Tensor:
    """(B, 3, F, H, W) in -1..1, clamped -> (B, F, H, W, 3) uint8, rounded, on the CPU."""
    scaled = (frames.float() * 127.5 + 127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().contiguous()
