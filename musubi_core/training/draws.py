"""Randomness by name: every draw of a run follows from the seed and from what it is for.

No generator lives from one step to the next, so a resumed run needs no random state, a second process draws
what the first would have drawn, and a preview in between changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and their order: seed_of(run seed, "noise", epoch, batch)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the parts. The CPU's numbers are the same on every machine."""
    return torch.Generator().manual_seed(seed_of(*parts))


def sample_noise(shape: Sequence[int], names: Sequence[str]) -> Tensor:
    """Standard normal noise for a batch of latents: (B, ...) float32 on the CPU, from one name per sample."""
    noise = torch.empty(tuple(shape), dtype=torch.float32)
    for one, name in zip(noise, names, strict=True):
        torch.randn(one.shape, generator=generator_for("noise", name), out=one)
    return noise


def epoch_quantiles(count: int, strata: int, generator: torch.Generator) -> Tensor:
    """A quantile in 0..1 for each of `count` samples of an epoch: (count,) float64.

    strata: 0 draws independently. Else 0..1 is cut into that many slices, each slice gets
    ceil(count / strata) uniform draws, and `count` of them are dealt out in random order.
    """
    if not strata:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    each = -(-count // strata)
    slices = torch.arange(strata, dtype=torch.float64).repeat_interleave(each)
    drawn = (slices + torch.rand(strata * each, generator=generator, dtype=torch.float64)) / strata
    return drawn[torch.randperm(strata * each, generator=generator)[:count]]
