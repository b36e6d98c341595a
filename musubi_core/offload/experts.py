"""The frozen networks of a run, of which one is at work at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


class Experts:
    """The networks, lowest noise first. Those that `wait` are in host memory unless they are at work."""

    def __init__(
        self, models: Sequence[nn.Module], *, device: torch.device, waits: Sequence[bool] = ()
    ) -> None:
        """The first one is on the device already; of the others, those that do not wait."""
        self.models = tuple(models)
        self._device = device
        self._waits = tuple(waits) or (False,) * len(self.models)
        self._side = 0

    def at_work(self, side: int) -> nn.Module:
        """The network of a side, on the device."""
        if side != self._side:
            leaving = _tensors(self.models[self._side]) if self._waits[self._side] else ()
            coming = _tensors(self.models[side]) if self._waits[side] else ()
            exchange(leaving, coming, self._device)
            self._side = side
        return self.models[side]

    def order(self) -> range:
        """All sides, the one at work first."""
        sides = range(len(self.models))
        return sides if self._side < len(sides) / 2 else sides[::-1]


def exchange(leaving: Iterable[Tensor], coming: Iterable[Tensor], device: torch.device) -> None:
    """Move `leaving` to host memory and `coming` to the device.

    In turns, so that neither the device nor the host ever holds much more than one network of the two.
    """
    for out, into in zip_longest(leaving, coming):
        if out is not None:
            out.data = out.data.to(HOST)
        if into is not None:
            into.data = into.data.to(device)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())
