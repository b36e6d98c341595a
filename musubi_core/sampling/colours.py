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


def grey_glance(clean: Tensor) -> Tensor:
    """The same where no factors are known: in grey, along the direction in which the cells differ most.

    Shapes are right and tones are not: what is light may be dark in the picture.
    """
    frames = (clean if clean.ndim == 4 else clean[:, None]).float().cpu()
    cells = frames.flatten(1) - frames.flatten(1).mean(dim=1, keepdim=True)
    _, directions = torch.linalg.eigh(cells @ cells.T)
    direction = directions[:, -1]
    strongest = direction[direction.abs().argmax()]
    tones = direction * strongest.sign() @ cells  # else its sign would be left to chance
    tones = tones / tones.std().clamp(min=torch.finfo(torch.float32).tiny) / 2  # two deviations to each side
    grey = ((tones + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return grey.view(*frames.shape[1:], 1).expand(-1, -1, -1, 3).contiguous()
