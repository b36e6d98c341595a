"""From a planned batch to what the network is trained on. Runs in reader threads, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from musubi_core.data.batches import LoadedItem, load_batch, load_item, map_tensors
from musubi_core.data.order import PlannedSample
from musubi_core.data.training_set import CachedItem
from musubi_core.models.spec import ArchSpec, Batch
from musubi_core.training.draws import epoch_quantiles, generator_for, sample_noise, seed_of
from musubi_core.training.loss import flow_pair, loss_weights
from musubi_core.training.options.timesteps import TimestepOptions
from musubi_core.training.plans import MicroPlan
from musubi_core.training.sides import WHOLE, Intervals, draw_on_one_side


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What turns cached tensors into training pairs, besides the batch itself.

    intervals: of t, one for each expert, rising.
    """

    spec: ArchSpec
    arch_options: Any
    timesteps: TimestepOptions
    seed: int
    epoch_samples: int
    epoch_batches: int
    intervals: Intervals = WHOLE
    load: Callable[[CachedItem], LoadedItem] = load_item


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One batch, ready for the network.

    noisy, target: (B, ...) float32. t: (B,) as the network is told, in 0..1 and a little beyond with
    timestep_offset. levels: the true noise levels. weights: (B,) or None when every sample counts 1. side:
    the expert that all levels belong to.
    """

    noisy: Tensor
    target: Tensor
    t: Tensor
    levels: tuple[float, ...]
    weights: Tensor | None
    conditioning: Mapping[str, Any]
    side: int = 0
    samples: tuple[PlannedSample, ...] = ()
    dropout_seed: int = 0

    def on(self, device: torch.device) -> Prepared:
        """The same on a device; copies do not make the caller wait."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._mapped(move)

    def pinned(self) -> Prepared:
        """The same in memory from which a GPU copies by itself."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Prepared:
        return replace(
            self,
            noisy=change(self.noisy),
            target=change(self.target),
            t=change(self.t),
            weights=None if self.weights is None else change(self.weights),
            conditioning=map_tensors(self.conditioning, change),
        )


def prepare(recipe: Recipe, plan: MicroPlan) -> Prepared:
    """Load a batch, draw its noise and noise levels, and mix. Raises BadFileError for a damaged cache."""
    samples = plan.batch.samples
    pair = training_pair(
        recipe,
        load_batch(plan.batch, recipe.load),
        quantiles=_quantiles(recipe, plan),
        noise_names=[f"{recipe.seed}/{plan.epoch}/{sample.identity}" for sample in samples],
    )
    dropout = seed_of("dropout", recipe.seed, plan.epoch, plan.index)
    return replace(pair, samples=samples, dropout_seed=dropout)


def training_pair(recipe: Recipe, batch: Batch, *, quantiles: Tensor, noise_names: Sequence[str]) -> Prepared:
    """Mix a batch with noise. quantiles: (B,) float64, of the distribution of t; a noise name per sample."""
    clean = recipe.spec.training_input(batch, recipe.arch_options)
    latents = clean.latents.float()
    height, width = latents.shape[-2:]
    side, levels = draw_on_one_side(recipe.timesteps, recipe.intervals, quantiles, height=height, width=width)
    noisy, target = flow_pair(latents, sample_noise(latents.shape, noise_names), levels.float())
    weights = loss_weights(recipe.timesteps.weighting_scheme, levels)
    return Prepared(
        noisy=noisy,
        target=target,
        t=(levels + recipe.timesteps.timestep_offset / 1000).float(),
        levels=tuple(levels.tolist()),
        weights=None if weights is None else weights.float(),
        conditioning=clean.conditioning,
        side=side,
    )


def _quantiles(recipe: Recipe, plan: MicroPlan) -> Tensor:
    """(B,) float64 from the epoch's pool. Where a batch is on one side and strata are asked for, the batches
    are dealt out to the slices, not the samples."""
    count, strata = len(plan.batch.samples), recipe.timesteps.strata
    if strata and len(recipe.intervals) > 1:
        pool = _epoch_pool(recipe.seed, plan.epoch, recipe.epoch_batches, strata)
        return pool[plan.index].expand(count)
    pool = _epoch_pool(recipe.seed, plan.epoch, recipe.epoch_samples, strata)
    return pool[plan.first : plan.first + count]


@lru_cache(maxsize=2)  # the epoch in use, and the next one while reading ahead
def _epoch_pool(seed: int, epoch: int, count: int, strata: int) -> Tensor:
    return epoch_quantiles(count, strata, generator_for("timesteps", seed, epoch))
