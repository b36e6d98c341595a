"""Flow-match Euler: the plain solver, over any `denoise(x, t)` that returns a velocity.

Convention: x_t = (1 - t) * x0 + t * noise, v = noise - x0; t = 1 is pure noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s * t / (1 + (s - 1) * t): more steps at high noise for s > 1. Any shape, values in 0..1."""
    return shift * t / (1 + (shift - 1) * t)


def euler_times(steps: int, shift: float) -> Tensor:
    """(steps + 1,) float64, 1 to 0, even, then shifted. Raises ValueError for steps < 1."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    return shift_time(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift)


def sample_euler(
    denoise: Denoise,
    noise: Tensor,
    times: Tensor,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate dx/dt = v from times[0] to times[-1].

    noise: any shape, float32 kept throughout. times: (n + 1,) descending. on_step(index, x) is told the state
    after every step; it may raise to stop. Returns x at times[-1], float32.
    """
    x = noise.float()
    for index in range(len(times) - 1):
        t, t_next = float(times[index]), float(times[index + 1])
        x = x + (t_next - t) * denoise(x, t).float()
        if on_step is not None:
            on_step(index, x)
    return x
