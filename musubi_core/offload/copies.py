"""From host memory into a device buffer: directly, or through pinned memory with a thread's help."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from musubi_core.device.pinning import host_buffer
from musubi_core.device.streams import CopyStream, Event


class Copies(Protocol):
    """Fills device buffers, numbered as slots. Tickets are whatever `wait` understands."""

    def start(self, slot: int, target: Tensor, source: Tensor, after: Event) -> Any:
        """Begin to fill the buffer of a slot, not before the computation has passed `after`."""
        ...

    def wait(self, ticket: Any) -> None:
        """What is computed from now on finds the copy done."""
        ...

    def finish(self, ticket: Any) -> None:
        """The caller waits until the source has been read."""
        ...

    def close(self) -> None:
        """Wait for every copy, then free what belongs to them."""
        ...


class DirectCopies:
    """For pinned sources; also for the CPU, where each copy is done at once."""

    def __init__(self, stream: CopyStream) -> None:
        self._stream = stream

    def start(self, slot: int, target: Tensor, source: Tensor, after: Event) -> Event:
        return self._stream.copy(target, source, after)

    def wait(self, ticket: Event) -> None:
        self._stream.wait(ticket)

    def finish(self, ticket: Event) -> None:
        self._stream.finish(ticket)

    def close(self) -> None:
        self._stream.finish()


class StagedCopies:
    """For ordinary memory, from which a card cannot copy on its own.

    One thread copies into a pinned buffer of the slot, from which the card then takes it; so the thread that
    trains never waits for the processor's part.
    """

    def __init__(self, stream: CopyStream, *, size: int, slots: int) -> None:
        self._stream = stream
        self._buffers = [host_buffer(size, pinned=True) for _ in range(slots)]
        self._taken: list[Event] = [None] * slots  # when the card has read the buffer of the slot
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block swap")

    def start(self, slot: int, target: Tensor, source: Tensor, after: Event) -> Future[Event]:
        return self._thread.submit(self._copy, slot, target, source, after)

    def wait(self, ticket: Future[Event]) -> None:
        self._stream.wait(ticket.result())

    def finish(self, ticket: Future[Event]) -> None:
        self._stream.finish(ticket.result())

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._stream.finish()
        self._buffers.clear()

    def _copy(self, slot: int, target: Tensor, source: Tensor, after: Event) -> Event:
        if self._taken[slot] is not None:
            self._stream.finish(self._taken[slot])
        buffer = self._buffers[slot][: source.numel()]
        with torch.no_grad():
            buffer.copy_(source)
            self._taken[slot] = self._stream.copy(target, buffer, after)
        return self._taken[slot]


def copies_for(stream: CopyStream, sources: Sequence[Tensor], *, device: torch.device, slots: int) -> Copies:
    """What suits the memory of the sources and the device."""
    if device.type == "cpu" or all(source.is_pinned() or not source.numel() for source in sources):
        return DirectCopies(stream)
    return StagedCopies(stream, size=max(source.numel() for source in sources), slots=slots)
