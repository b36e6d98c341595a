"""The batch of a dataset that needs the most memory, and smaller versions of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.config import LatentShape
from musubi_core.data.order import BatchPlan, epoch_batches
from musubi_core.data.training_set import CachedItem, TrainingSet

LATENTS = "latents"  # how the cache names of everything with frames, rows and columns begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """A smaller size of the same media: latent frames, and rows and columns as a share of what they are."""

    frames: int | None = None
    side: float = 1.0


AS_IS = Shrink()


def largest_batch(training: TrainingSet, seed: int) -> BatchPlan:
    """The batch with the most numbers, those of its latents before all others. Reads nothing.

    Captions of varying length do not count: they are short beside latents.
    """
    return max(epoch_batches(training, seed, 0), key=lambda plan: _numbers(plan.samples[0].item, plan))


def describe(item: CachedItem, shape: LatentShape) -> str:
    """The item for messages, e.g. "clip_07.mp4, 832x480x81"."""
    frames, rows, columns = latent_size(item)
    size = f"{columns * shape.spatial}x{rows * shape.spatial}"
    pixels = (frames - 1) * shape.temporal + 1
    name = Path(item.source).name
    return f"{name}, {size}x{pixels}" if pixels > 1 else f"{name}, {size}"


def latent_size(item: CachedItem) -> tuple[int, int, int]:
    """(F, H, W) of an item's latents."""
    found = next((shape for name, shape, _ in item.shapes if name == LATENTS), (1, 1, 1, 1))
    return (found[1] if len(found) == 4 else 1), found[-2], found[-1]


def shrunk(batch: Mapping[str, Any], change: Shrink) -> dict[str, Any]:
    """The batch as smaller media would give it: every latent (B, C, F, H, W) or (B, C, H, W) is cut off.

    Frames are cut where there are as many as in the latents themselves; sides stay multiples of 4.
    """
    frames = batch[LATENTS].shape[2] if batch[LATENTS].ndim == 5 else None
    result = dict(batch)
    for name, tensor in batch.items():
        if not name.startswith(LATENTS) or isinstance(tensor, list) or tensor.ndim < 4:
            continue
        rows, columns = (max(4, int(side * change.side) // 4 * 4) for side in tensor.shape[-2:])
        tensor = tensor[..., :rows, :columns]
        if change.frames and tensor.ndim == 5 and tensor.shape[2] == frames:
            tensor = tensor[:, :, : change.frames]
        result[name] = tensor
    return result


def _numbers(item: CachedItem, plan: BatchPlan) -> tuple[int, int]:
    sizes = {name: math.prod(shape) for name, shape, _ in item.shapes}
    latents = sum(size for name, size in sizes.items() if name.startswith(LATENTS))
    return latents * len(plan.samples), sum(sizes.values()) * len(plan.samples)
