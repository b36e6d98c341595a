"""DPM-Solver++ of second order, multistep, midpoint form (Lu et al., arXiv 2211.01095), for flow matching."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from musubi_core.sampling.log_ratio import log_ratio
from musubi_core.sampling.solving import Denoise, Step


def dpm_2m(denoise: Denoise, noise: Tensor, times: Tensor) -> Iterator[Step]:
    """From times[0] to times[-1]; the first step and the last are of first order. See `solving.Solver`.

    It predicts x0 and goes along the half logarithm of signal over noise, l = ln((1 - t) / t).
    """
    x = noise.float()
    before: tuple[Tensor, float] | None = None  # the clean latent of the step before, and its l
    count = len(times) - 1
    for index in range(count):
        t, t_next = float(times[index]), float(times[index + 1])
        clean = x - t * denoise(x, t).float()
        here, there = log_ratio(t), log_ratio(t_next)
        towards = clean
        if before is not None and index < count - 1:
            earlier, at = before
            # The share of the slope: half a step forward, in units of the step before. 0 after a start at
            # t = 1, which is infinitely far away.
            towards = clean + (there - here) / (here - at) / 2 * (clean - earlier)
        x = t_next / t * x - (1 - t_next) * math.expm1(here - there) * towards
        before = clean, here
        yield Step(index=index, t=t, x=x, clean=clean)
