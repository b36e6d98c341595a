"""Counting the memory of tensors while operations run, real ones or fake ones without memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS = "activations"
GRAIN = {"cuda": 512, "xpu": 512}  # bytes; torch gives out memory of a card in multiples of this


class LiveBytes(TorchDispatchMode):
    """Inside, every storage on `device` that an operation makes is counted from then on until it is freed.

    What autograd keeps for the backward pass and what checkpointing makes again are storages as any other, so
    nothing has to be known about the network. Memory that an operation uses only within itself is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.total = 0
        self.peak = 0
        self.at_peak: Mapping[str, int] = {}  # bytes by kind when the total was highest
        self._device = device.type
        self._grain = GRAIN.get(device.type, 1)
        self._kinds: Counter[str] = Counter()
        self._live: dict[int, weakref.ref[Any]] = {}

    def claim(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these, which exist already, as `kind`."""
        for tensor in tensors:
            self._add(tensor, kind)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._add(one, ACTIVATIONS)
        return result

    def _add(self, tensor: Tensor, kind: str) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = id(storage)  # torch keeps the Python object of a storage as long as the storage lives
        if key in self._live:
            return
        size = -(-storage.nbytes() // self._grain) * self._grain

        def freed(_: Any) -> None:
            del self._live[key]
            self._kinds[kind] -= size
            self.total -= size

        self._live[key] = weakref.ref(storage, freed)
        self._kinds[kind] += size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = dict(self._kinds)
