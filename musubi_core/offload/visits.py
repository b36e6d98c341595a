"""Frozen modules that are on the device only while they compute.

For what a network does once in a pass, e.g. to embed its inputs: unlike swapped blocks, it needs no buffer
that stays. Nothing is kept for a backward pass, so no gradient may flow through such a module; torch refuses
if one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from musubi_core.offload.ring import tensors_of


class Visits:
    """Keeps the weights of modules in host memory, and brings them in for each forward."""

    def __init__(self, modules: Sequence[nn.Module], *, device: torch.device) -> None:
        self._device = device
        self._homes: dict[Tensor, Tensor] = {}
        self._hooks: list[Any] = []
        for module in modules:
            tensors = list(tensors_of(module))
            if any(tensor.requires_grad for tensor in tensors):
                raise ValueError("a trained weight cannot visit: its changes would not be copied back")
            for tensor in tensors:
                tensor.data = self._homes[tensor] = tensor.data.to("cpu")
            before, after = partial(self._arrive, tensors), partial(self._leave, tensors)
            self._hooks.append(module.register_forward_pre_hook(before, prepend=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))

    @property
    def host_bytes(self) -> int:
        """Host memory of the weights."""
        return sum(home.nbytes for home in self._homes.values())

    def release(self) -> None:
        """The weights stay in host memory as ordinary ones."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _arrive(self, tensors: Sequence[Tensor], module: nn.Module, inputs: Any) -> None:
        with torch.no_grad():
            for tensor in tensors:
                tensor.data = torch.empty_like(tensor, device=self._device).copy_(self._homes[tensor])

    def _leave(self, tensors: Sequence[Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in tensors:
            tensor.data = self._homes[tensor]
            increment_version(tensor)
