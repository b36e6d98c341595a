"""A latent at a glance: a small picture without the VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def glance(clean: Tensor, factors: Sequence[Sequence[float]], bias: Sequence[float]) -> Tensor:
    """(C, F, H, W) or (C, H, W), as the network sees clean latents -> (F, H, W, 3) uint8 on the CPU.

    factors: for each channel those of red, green and blue; with bias they give -1..1.
    """
    frames = clean if clean.ndim == 4 else clean[:, None]
    table = torch.tensor(factors, dtype=torch.float32, device=clean.device)
    colours = torch.einsum("cfhw,cr->fhwr", frames.float(), table) + torch.tensor(bias, device=clean.device)
    return ((colours + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
