"""Flow-match Euler: the plain solver."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from musubi_core.sampling.solving import Denoise, Step


def euler(denoise: Denoise, noise: Tensor, times: Tensor) -> Iterator[Step]:
    """Integrate dx/dt = v from times[0] to times[-1]. See `solving.Solver`."""
    x = noise.float()
    for index in range(len(times) - 1):
        t, t_next = float(times[index]), float(times[index + 1])
        velocity = denoise(x, t).float()
        clean = x - t * velocity
        x = x + (t_next - t) * velocity
        yield Step(index=index, t=t, x=x, clean=clean)
