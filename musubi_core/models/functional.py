"""What diffusion transformers of one family have in common, as functions without weights.

Shapes: B batch, L tokens, D hidden size, n heads, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, L, n, d) -> (B, L, n, d)

EPSILON = 1e-6
SINUSOID = 256


def sinusoid(t: Tensor, width: int = SINUSOID, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of t at geometrically falling rates. t: (B,) -> (B, width) float32."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without learned parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis: float32 inside, the input's dtype outside."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return normed.to(x.dtype) * weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, L, D); shift, scale: (B, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, 3D) -> q, k, v, each (B, L, n, d)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    return q, k, v
