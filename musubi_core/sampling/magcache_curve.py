"""Magnitude ratios for other steps than those at which they were measured.

A sampler may visit any part of the schedule, in steps of any size: another number of steps, another
scheduler, a picture that is half done, one of two networks that share the schedule. A position says where a
step stands: from 0, pure noise, to 1, as a share of the steps of an ordinary run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

HALVINGS = 40  # of the interval in which a position is searched
SAME_STEP = 0.1  # of a measured step: schedulers round the noise levels of their steps


def even_positions(steps: int) -> tuple[float, ...]:
    """Where the steps of an ordinary run stand."""
    return tuple(step / steps for step in range(steps))


def position_of(noise: float, noise_at: Callable[[float], float]) -> float:
    """The position whose noise level is `noise`. noise_at: position -> noise level, falling."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if noise_at(middle) > noise else (low, middle)
    return (low + high) / 2


def ratios_at(
    ratios: Sequence[float], measured: Sequence[float], wanted: Sequence[float]
) -> tuple[float, ...]:
    """The ratio of each wanted position to the one before; the first is 1.

    ratios: at the positions `measured`, two at least. measured, wanted: rising. The product of the ratios up
    to a position is the length of the residual there. Between measured positions its logarithm is taken to
    be straight, and beyond them to go on as it was; so a step of double size gets the product of two ratios.
    """
    lengths = list(accumulate((math.log(ratio) for ratio in ratios[1:]), initial=0.0))
    step = (measured[-1] - measured[0]) / (len(measured) - 1)
    found = [_height(lengths, measured, _snapped(one, measured, step)) for one in wanted]
    return (1.0, *(math.exp(now - before) for before, now in pairwise(found)))


def _snapped(position: float, measured: Sequence[float], step: float) -> float:
    """The measured position that is as good as the same, or the position itself."""
    near = min(measured, key=lambda one: abs(one - position))
    return near if abs(near - position) < SAME_STEP * step else position


def _height(heights: Sequence[float], places: Sequence[float], place: float) -> float:
    """A point of the line through (places, heights), which goes on straight at both ends."""
    right = min(max(bisect_right(places, place), 1), len(places) - 1)
    left = right - 1
    share = (place - places[left]) / (places[right] - places[left])
    return heights[left] + share * (heights[right] - heights[left])
