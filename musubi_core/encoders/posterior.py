"""A latent drawn from a VAE's posterior, one seed per item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw(mean: Tensor, std: Tensor, seeds: Sequence[int]) -> Tensor:
    """mean + std * noise in float32 on the CPU.

    mean, std: (B, ...); seeds: B of them. Each item has its own generator, so what is drawn depends neither
    on the order of the items, nor on the size of the batch, nor on the device.
    """
    if len(seeds) != mean.shape[0]:
        raise ValueError(f"{len(seeds)} seeds for {mean.shape[0]} items")
    noise = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return mean.float().cpu() + std.float().cpu() * torch.stack(noise)
