"""The samplers by name: which times, which solver, and what the network is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from musubi_core.sampling.dpm import dpm_2m
from musubi_core.sampling.euler import euler
from musubi_core.sampling.solving import Solver, flow_times
from musubi_core.sampling.unipc import FLOW, NOISE_ONLY, unipc

TIMESTEPS = 1000  # of the schedules that these networks were trained with
_ROUNDING = 1e-6  # so that 700 timesteps, reached as 699.9999999, stay 700


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """times: (steps, shift) -> (steps + 1,). whole: the network is told timesteps cut to whole numbers."""

    solve: Solver
    times: Callable[[int, float], Tensor] = flow_times
    whole: bool = False

    def told(self, t: float) -> float:
        """The time that the network is told where the solver is at t. Both in 0..1."""
        return int(t * TIMESTEPS + _ROUNDING) / TIMESTEPS if self.whole else t


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(solve=euler),
    "vanilla": Sampler(solve=euler),  # musubi-tuner's word for it
    # The official grid begins one timestep below pure noise, and timesteps are whole numbers.
    "unipc": Sampler(
        solve=partial(unipc, form=FLOW),
        times=partial(flow_times, highest=1 - 1 / TIMESTEPS),
        whole=True,
    ),
    "dpm++": Sampler(solve=dpm_2m, whole=True),
    "unipc_bh1": Sampler(solve=partial(unipc, form=NOISE_ONLY)),
}
