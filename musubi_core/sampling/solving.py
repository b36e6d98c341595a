"""What all solvers share.

Convention: x_t = (1 - t) * x0 + t * noise, v = noise - x0, so x0 = x_t - t * v; t = 1 is pure noise.

A solver is a generator over any `denoise(x, t)` that returns a velocity. It asks once per step, and yields a
`Step` after each: who iterates may look, and may stop. `last` gives the result of one that runs through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step is done. index: from 0. x: the state after it, float32. clean: the network's idea of x0."""

    index: int
    t: float  # where the network was asked
    x: Tensor
    clean: Tensor


# (denoise, noise of any shape, times (n + 1,) descending) -> n steps; x of the last is the result
Solver: TypeAlias = Callable[[Denoise, Tensor, Tensor], Iterator[Step]]


def last(steps: Iterable[Step]) -> Tensor:
    """The state after all steps. Raises ValueError when there are none."""
    result: Tensor | None = None
    for step in steps:
        result = step.x
    if result is None:
        raise ValueError("there are no steps")
    return result


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s * t / (1 + (s - 1) * t): more steps at high noise for s > 1. Any shape, values in 0..1."""
    return shift * t / (1 + (shift - 1) * t)


def flow_times(steps: int, shift: float, *, highest: float = 1.0) -> Tensor:
    """(steps + 1,) float64, from `highest` to 0, even, then shifted. Raises ValueError for steps < 1."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    return shift_time(torch.linspace(highest, 0.0, steps + 1, dtype=torch.float64), shift)
