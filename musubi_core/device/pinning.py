"""Host memory that a card can read directly, while the processor goes on."""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import Tensor


def host_buffer(size: int, *, pinned: bool) -> Tensor:
    """(size,) uint8 in host memory; pinned if asked and if the system allows it, see `Tensor.is_pinned`.

    torch's own pinned memory comes in powers of two, which would waste up to half of a large buffer; on CUDA
    the exact size is registered instead. It is ordinary memory again when this tensor object is gone, though
    views of it may live on; no copy from or to it may be under way then.
    """
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    if not pinned or not size:
        return buffer
    if torch.cuda.is_available():
        _register(buffer)
        return buffer
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return buffer.pin_memory()
    return buffer


def _register(buffer: Tensor) -> None:
    runtime, start = torch.cuda.cudart(), buffer.data_ptr()
    if int(runtime.cudaHostRegister(start, buffer.numel(), 0)) == 0:
        weakref.finalize(buffer, runtime.cudaHostUnregister, start).atexit = False
        return
    # Refused, so the memory stays as it is. The next kernel would report that as its own error.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
