"""Power-function averages of the trained weights, kept beside them (EDM2, arXiv 2312.02696).

Stored with the checkpoints, they let `ema-merge --weighting stored` make an average of any width afterwards.
They never touch the run: the weights that are trained are the same with and without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from musubi_core.errors import ConfigError
from musubi_core.networks.power_ema import exponent_of


class RunningAverages:
    """One copy of the parameters, float32, for each width."""

    def __init__(self, widths: Sequence[float], parameters: Sequence[nn.Parameter]) -> None:
        self.widths = tuple(widths)
        self._powers = [exponent_of(width) + 1 for width in self.widths]
        self._parameters = list(parameters)
        self._averages = [[one.detach().clone() for one in self._parameters] for _ in self.widths]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1: a = b * a + (1 - b) * weights."""
        now = [one.detach() for one in self._parameters]
        for power, averages in zip(self._powers, self._averages, strict=True):
            torch._foreach_lerp_(averages, now, 1 - (1 - 1 / step) ** power)

    @contextlib.contextmanager
    def in_place(self, width: float) -> Generator[None, None, None]:
        """Within the `with`, the parameters hold the average of that width."""
        averages = self._averages[self.widths.index(width)]
        trained = [one.data for one in self._parameters]
        try:
            for parameter, average in zip(self._parameters, averages, strict=True):
                parameter.data = average
            yield
        finally:
            for parameter, own in zip(self._parameters, trained, strict=True):
                parameter.data = own

    def state(self) -> dict[str, Any]:
        """For a run state."""
        return {"widths": list(self.widths), "averages": self._averages}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`. Raises ConfigError when it holds other widths."""
        stored = tuple((state or {}).get("widths", ()))
        if stored != self.widths:
            raise ConfigError(
                f"ema_sigma_rel is {_listed(self.widths)}, but the state to resume from keeps "
                f"{_listed(stored)}. An average cannot begin in the middle of a run: give the same widths."
            )
        if state is not None:
            for own, kept in zip(self._averages, state["averages"], strict=True):
                _copy(own, kept)


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _listed(widths: Sequence[float]) -> str:
    return ", ".join(f"{width:g}" for width in widths) or "none"
