"""The flow-matching loss. Pure functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_SIGMA = 1e-3  # the cleanest entry of the usual table of 1000; keeps sigma_sqrt finite at t = 0


def flow_pair(latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A training pair of rectified flow: (1 - t) * latents + t * noise, and the velocity noise - latents.

    latents, noise: (B, ...) float32; t: (B,) in 0..1. Both results are shaped like latents.
    """
    mix = t.reshape(-1, *[1] * (latents.ndim - 1))
    return torch.lerp(latents, noise, mix), noise - latents


def loss_weights(scheme: str, t: Tensor) -> Tensor | None:
    """How much each sample counts: (B,) in 0..1 -> (B,), or None when all count 1. sigma is t itself."""
    if scheme == "sigma_sqrt":
        return t.clamp(min=LEAST_SIGMA) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))
    return None


def sample_losses(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample in float32, weighted: (B, ...), (B, ...), (B,) -> (B,)."""
    losses = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
    return losses if weights is None else losses * weights
