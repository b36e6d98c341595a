"""Copies that run beside the computation, on devices that can; elsewhere they are done at once."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

Event: TypeAlias = Any  # torch.cuda.Event, torch.xpu.Event; None where copies are done at once


class CopyStream:
    """A queue of copies to and from one device, in order, while the device computes.

    The "computation" is the current stream of the calling thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = getattr(torch, device.type) if device.type in ("cuda", "xpu") else None
        self._stream: Any = self._module.Stream(device) if self._module else None

    def mark(self) -> Event:
        """A point in the computation: everything that was queued until now."""
        return self._module.current_stream(self.device).record_event() if self._module else None

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        """Copy once the computation has passed `after`. Returns the event of its end.

        Both tensors must live until then. Memory of the host is read while the caller goes on if pinned.
        """
        if self._module is None:
            target.copy_(source)
            return None
        with self._module.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            for tensor in (target, source):
                if tensor.device.type != "cpu":
                    tensor.record_stream(self._stream)
            return self._stream.record_event()

    def wait(self, event: Event) -> None:
        """What is computed from now on waits for the event; the caller does not."""
        if self._module is not None and event is not None:
            self._module.current_stream(self.device).wait_event(event)

    def finish(self, event: Event = None) -> None:
        """The caller waits: for the event, or for every copy so far."""
        if event is not None:
            event.synchronize()
        elif self._stream is not None:
            self._stream.synchronize()
