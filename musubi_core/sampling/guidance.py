"""Classifier-free guidance: away from what the negative prompt wants, and what is done about the length."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6  # a length by which is divided


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """uncond + scale * (cond - uncond). Equal shapes; 1 gives cond, 0 gives uncond."""
    return uncond + scale * (cond - uncond)


def with_norm_of(guided: Tensor, cond: Tensor, *, patch: int = 2) -> Tensor:
    """`guided` with the length that `cond` has, for each token, of patch x patch cells of a latent.

    (B, C, ..., H, W), H and W multiples of `patch`. As Qwen-Image is sampled.
    """
    factor = _token_norms(cond, patch) / _token_norms(guided, patch).clamp(min=LEAST)
    return guided * factor.repeat_interleave(patch, dim=-2).repeat_interleave(patch, dim=-1)


def with_spread_of(guided: Tensor, cond: Tensor, *, amount: float) -> Tensor:
    """`guided` with the standard deviation that `cond` has in each sample, mixed in by `amount`, 0..1.

    (B, ...). After "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), where
    the tensors are clean latents.
    """
    axes = list(range(1, cond.ndim))
    spread = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return torch.lerp(guided, spread, amount)


def _token_norms(x: Tensor, patch: int) -> Tensor:
    """(B, C, ..., H, W) -> (B, 1, ..., H / patch, W / patch)."""
    height, width = x.shape[-2:]
    cells = x.float().square().sum(dim=1, keepdim=True)
    cells = cells.unflatten(-2, (height // patch, patch)).unflatten(-1, (width // patch, patch))
    return cells.sum(dim=(-3, -1)).sqrt().to(x.dtype)
