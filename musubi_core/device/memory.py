"""How much memory this process uses, on a card or in all."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes in use now, and the most so far."""

    allocated: int
    peak: int


def memory_in_use(device: torch.device) -> MemoryUse | None:
    """What torch holds on a card; for the CPU, what the whole process holds. None where nothing tells."""
    if device.type == "cpu":
        return host_memory()
    if device.type not in ("cuda", "xpu"):
        return None
    module = getattr(torch, device.type)
    return MemoryUse(allocated=module.memory_allocated(device), peak=module.max_memory_allocated(device))


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device. Nothing on the CPU."""
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


def host_memory() -> MemoryUse | None:
    """Main memory of this process. None where the system does not tell without further packages."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes, Linux KiB
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return MemoryUse(allocated=pages * resource.getpagesize(), peak=peak * 1024)
    except (ImportError, OSError, ValueError, IndexError):
        return None  # no /proc: macOS, some containers


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 6),
    )


def _windows_memory() -> MemoryUse | None:
    if sys.platform != "win32":
        return None
    counters = _Counters(size=ctypes.sizeof(_Counters))
    process = ctypes.c_void_p(-1)  # what GetCurrentProcess returns
    if not ctypes.windll.kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        return None
    return MemoryUse(allocated=counters.working_set, peak=counters.peak_working_set)


def card_memory(device: torch.device) -> int | None:
    """All memory of a card. None for the CPU, and where nothing tells."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.mem_get_info(device)[1])


def forget_peak(device: torch.device) -> None:
    """The most that torch has held begins again with what it holds now. Nothing on the CPU."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)
