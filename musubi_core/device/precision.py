"""Devices and number types, by the words that options use."""

from __future__ import annotations

import torch

from musubi_core.device.memory import MemoryUse, empty_cache, host_memory, memory_in_use
from musubi_core.errors import ConfigError

__all__ = [
    "MemoryUse",
    "autocast_dtype",
    "dtype_of",
    "empty_cache",
    "host_memory",
    "memory_in_use",
    "pick_device",
    "usual_precision",
]

_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "fp64": torch.float64,
    "float64": torch.float64,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "float8_e5m2": torch.float8_e5m2,
}


def dtype_of(text: str) -> torch.dtype:
    """The number type that a word means: "bf16", "float16", "fp8_e4m3fn", ... Raises ConfigError."""
    dtype = _DTYPES.get(text.strip().lower().removeprefix("torch."))
    if dtype is None:
        raise ConfigError(f"{text!r} is no number type; choose one of {', '.join(_DTYPES)}.")
    return dtype


def autocast_dtype(mixed_precision: str) -> torch.dtype | None:
    """What `--mixed_precision` computes in: "no" (None), "fp16" or "bf16". Raises ConfigError."""
    if mixed_precision == "no":
        return None
    if mixed_precision not in ("fp16", "bf16"):
        raise ConfigError(f"mixed_precision is {mixed_precision!r}; choose no, fp16 or bf16.")
    return _DTYPES[mixed_precision]


def usual_precision(device: torch.device) -> str:
    """What is computed in unless someone says otherwise: bf16 on a GPU, fp16 where it has none, else full."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def pick_device(text: str | None = None) -> torch.device:
    """The device that a word means ("cuda", "cuda:1", "cpu", "mps", "xpu"); None or "" is the best there is.

    Raises ConfigError for a word that is none, or a device that this machine or this torch does not have.
    """
    if not text:
        found = [name for name in ("cuda", "xpu", "mps") if _device_count(name)]
        return torch.device(found[0] if found else "cpu")
    try:
        device = torch.device(text.strip().lower())
    except RuntimeError:
        raise ConfigError(f"{text!r} is no device; write cuda, cuda:1, cpu, mps or xpu.") from None
    if device.type in ("cpu", "meta"):
        return device
    count = _device_count(device.type)
    if (device.index or 0) >= count:
        found_text = f"{count} of that kind" if count else "none of that kind"
        raise ConfigError(
            f"Device {text!r} was asked for, but torch {torch.__version__} finds {found_text} on this "
            "machine. Choose another, leave the device unset, or install a torch build for your card."
        )
    return device


def _device_count(kind: str) -> int:
    """How many devices of that kind there are. Asking does not start the driver for computing."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and hasattr(module, "device_count") else 0
