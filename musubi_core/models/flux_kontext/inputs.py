"""What the network is fed: in training from caches, in sampling from encoded prompts and pictures.

Conditioning holds `text` (B, L, T), `pooled` (B, P), `guidance` (B,) and `references`, a tuple of clean
latents (B, C, h', w'), as many as an item has control pictures.
"""

from __future__ import annotations

import math
import re
from typing import cast

import torch
from torch import Tensor, nn

from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.spec import Batch, Conditioning, TrainingInput

CONTROL = "latents_control"
_FURTHER = re.compile(rf"{CONTROL}_(\d+)")


def control_name(index: int) -> str:
    """The cache name of an item's control picture number `index`.

    The first has musubi-tuner's name, so that either program reads files with one control of the other.
    """
    return f"{CONTROL}_{index}" if index else CONTROL


def training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    """latents: (B, 16, h, w) as cached, already scaled -> the same in float32."""
    latents = cast(Tensor, batch["latents"]).float()
    return TrainingInput(latents=latents, conditioning=_conditioning(batch, options.guidance_scale))


def sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    """The conditioning of encoded prompts; without control pictures the network draws from text alone."""
    return _conditioning(batch, guidance)


def predict(
    network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: TrainOptions
) -> Tensor:
    """The velocity at x: (B, 16, h, w); t: (B,) in 0..1. References are shown clean and are not predicted."""
    return network(x, t, placement=options.reference_placement, **conditioning)


def dynamic_shift(height: int, width: int) -> float:
    """The time shift of the released samplers for a latent of this size: more noise for larger pictures."""
    tokens = (height // 2) * (width // 2)
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def _conditioning(batch: Batch, guidance: float) -> Conditioning:
    pooled = cast(Tensor, batch["clip_l_pooler"])
    return {
        "text": batch["t5_vec"],
        "pooled": pooled,
        "guidance": torch.full((len(pooled),), guidance, device=pooled.device),
        "references": _references(batch),
    }


def _references(batch: Batch) -> tuple[Tensor, ...]:
    """The control latents of a batch in their order, float32."""
    further = sorted(int(found[1]) for name in batch if (found := _FURTHER.fullmatch(name)))
    names = [control_name(index) for index in (0, *further)]
    return tuple(cast(Tensor, batch[name]).float() for name in names if name in batch)
