"""Which expert trains which noise levels: a batch belongs to one of them as a whole.

A model may have several networks, each for an interval of t. If every sample of a batch drew its t by itself,
most batches would need all of the networks. So a batch draws one quantile, which chooses the side in
proportion to its share of the distribution, and every t is then drawn given that it lies on that side. Over
all batches t is distributed as in the training of a single network. No draw is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.models.spec import Expert
from musubi_core.training.distributions import LEAST_MASS
from musubi_core.training.options.timesteps import TimestepOptions
from musubi_core.training.timesteps import draw, quantile_range

Interval: TypeAlias = tuple[float, float]  # lowest t, and the t from which the next expert answers
Intervals: TypeAlias = tuple[Interval, ...]
WHOLE: Intervals = ((0.0, 1.0),)


def intervals_of(experts: Sequence[Expert]) -> Intervals:
    return tuple((expert.t_min, expert.t_max) for expert in experts)


def needed_experts(
    options: TimestepOptions, experts: Sequence[Expert], sizes: Iterable[tuple[int, int]]
) -> tuple[Expert, ...]:
    """Those that have a share in the noise levels of a latent of any of the sizes (height, width).

    Raises ConfigError when the options leave no noise level at all.
    """
    if len(experts) == 1:
        return tuple(experts)
    shares = [
        [high - low for low, high in _ranges(options, intervals_of(experts), height, width)]
        for height, width in sizes
    ]
    return tuple(
        expert
        for expert, share in zip(experts, zip(*shares, strict=True), strict=True)
        if max(share) >= LEAST_MASS
    )


def draw_on_one_side(
    options: TimestepOptions, intervals: Intervals, quantiles: Tensor, *, height: int, width: int
) -> tuple[int, Tensor]:
    """The side of a batch, an index into `intervals`, and the t of its samples, (B,) float64.

    quantiles: (B,) float64 in 0..1. The first chooses the side and stands for its own t, so batches of one
    sample draw as a single network does. The others are quantiles within the side; with strata only the
    first counts, and the samples spread evenly over the side, beginning there.
    """
    if intervals == WHOLE:
        return 0, draw(options, quantiles, height=height, width=width)
    side = 0
    if len(intervals) > 1:
        side, quantiles = _onto_one_side(options, intervals, quantiles, height, width)
    levels = draw(options, quantiles, height=height, width=width)
    return side, levels.clamp(*_limits(intervals[side]))


def _onto_one_side(
    options: TimestepOptions, intervals: Intervals, quantiles: Tensor, height: int, width: int
) -> tuple[int, Tensor]:
    """The side that the first quantile lies on, and the quantiles moved onto it."""
    lead = quantiles[0].item()
    ranges = _ranges(options, intervals, height, width)
    away = [max(low - lead, lead - high, 0.0) if high > low else 1.0 for low, high in ranges]
    side = away.index(min(away))  # 0 away, but for what an expert that is not loaded leaves uncovered
    low, high = ranges[side]
    if options.strata:
        turn = torch.arange(len(quantiles), dtype=torch.float64) / len(quantiles)
        quantiles = ((lead - low) / (high - low) + turn) % 1.0
    moved = low + quantiles * (high - low)
    moved[0] = lead
    return side, moved


@lru_cache(maxsize=256)  # one per size of latents
def _ranges(options: TimestepOptions, intervals: Intervals, height: int, width: int) -> Intervals:
    """The quantiles that give a t on each side."""
    return tuple(quantile_range(options, low, high, height=height, width=width) for low, high in intervals)


@lru_cache(maxsize=16)
def _limits(interval: Interval) -> tuple[float, float]:
    """The lowest and highest t of a side that stay on it when they are rounded to float32, as networks are
    told them."""
    low, high = torch.tensor(interval, dtype=torch.float32)
    if low.double() < interval[0]:
        low = torch.nextafter(low, torch.tensor(2.0))
    if interval[1] < 1 and high.double() >= interval[1]:
        high = torch.nextafter(high, torch.tensor(-1.0))
    return low.item(), high.item()
