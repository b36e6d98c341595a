"""The networks that draw, and how they are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musubi_core.generation.settings import DrawSettings
from musubi_core.models.spec import ArchSpec, Expert
from musubi_core.sampling.samplers import SAMPLERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """One model: as many networks as it has experts, lowest noise first, loaded and in eval mode.

    options: settled train options. at_work: a side -> its network, brought to the device, see
    `offload.experts.Experts.at_work`. autocast: what matrices are multiplied in; None: the weights' dtype.
    """

    spec: ArchSpec
    options: Any
    experts: tuple[Expert, ...]
    at_work: Callable[[int], nn.Module]
    device: torch.device
    autocast: torch.dtype | None = None

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Around each call of a network."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def sides(settings: DrawSettings, experts: Sequence[Expert]) -> tuple[int, ...]:
    """For every step of a drawing, which network answers."""
    sampler = SAMPLERS[settings.sampler]
    return tuple(_side(sampler.told(t), experts) for t in times_of(settings)[:-1].tolist())


def times_of(settings: DrawSettings) -> Tensor:
    """(steps + 1,) descending to 0, of the steps that are taken."""
    times = SAMPLERS[settings.sampler].times(settings.steps, settings.shift)
    return times[-settings.taken_steps - 1 :]


def _side(t: float, experts: Sequence[Expert]) -> int:
    """The last one whose noise levels begin at or below t."""
    return max(number for number, expert in enumerate(experts) if t >= expert.t_min or number == 0)
