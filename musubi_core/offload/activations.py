"""What autograd keeps between forward and backward, in host memory meanwhile.

Meant for networks with gradient checkpointing, which keep little more than the inputs of their blocks. Inside
a checkpointed block nothing is moved: what is kept there, while the block runs again, is used at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from musubi_core.device.streams import CopyStream, Event

SMALLEST = 1 << 16  # bytes; a copy of less takes longer than the memory is worth


class Activation:
    """One tensor in host memory, and the one that was moved before it: backward needs that one next."""

    def __init__(self, tensor: Tensor, host: Tensor, stream: CopyStream, previous: Activation | None) -> None:
        self.nbytes = tensor.nbytes
        self._device = tensor.device
        self._host = host
        self._stream = stream
        self._previous = previous
        self._arriving: tuple[Tensor, Event] | None = None
        stream.copy(host, tensor.detach(), stream.mark())

    def fetch(self) -> Tensor:
        """The tensor, back on its device; its predecessor is sent for."""
        self._send()
        assert self._arriving is not None
        (tensor, event), self._arriving = self._arriving, None
        self._stream.wait(event)
        if self._previous is not None:
            self._previous._send()
        return tensor

    def _send(self) -> None:
        if self._arriving is None:
            tensor = torch.empty_like(self._host, device=self._device)
            self._arriving = tensor, self._stream.copy(tensor, self._host, self._stream.mark())


@contextlib.contextmanager
def activations_on_host(
    model: nn.Module, stream: CopyStream, *, smallest: int = SMALLEST
) -> Iterator[list[int]]:
    """Around one forward pass, whose backward pass comes later: what it keeps waits in host memory.

    Exact, since values are only copied; on a card the copies run beside the computation. Weights of the
    model stay where they are, and so does what is smaller than `smallest` bytes. Yields the sizes of what
    has been moved, in bytes.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    known: dict[Any, tuple[StorageWeakRef, Activation]] = {}
    newest: Activation | None = None
    moved: list[int] = []

    def pack(tensor: Tensor) -> Tensor | Activation:
        nonlocal newest
        storage = tensor.untyped_storage()
        elsewhere = tensor.device.type != stream.device.type
        if elsewhere or tensor.nbytes < smallest or storage.data_ptr() in weights:
            return tensor
        # An input of several blocks is moved once. The weak reference keeps the number of its storage from
        # being given to another one, and lets go of the memory.
        source = StorageWeakRef(storage)
        view = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
        key = source.cdata, tensor._version, view
        if key not in known:
            host = torch.empty_like(tensor, device="cpu", pin_memory=stream.device.type != "cpu")
            if host.stride() != tensor.stride():
                return tensor  # one with gaps or repetitions: a copy would have another layout
            newest = Activation(tensor, host, stream, newest)
            known[key] = source, newest
            moved.append(newest.nbytes)
        return known[key][1]

    def unpack(kept: Tensor | Activation) -> Tensor:
        return kept.fetch() if isinstance(kept, Activation) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        try:
            yield moved
        finally:
            known.clear()  # the graph alone decides how long an activation lives
            newest = None
