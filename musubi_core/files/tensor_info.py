"""What a file's header says of one tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """shape as stored; dtype is torch's name: "bfloat16", "float8_e4m3fn", ..."""

    shape: tuple[int, ...]
    dtype: str
