"""Number types of safetensors files. Torch-free: types are torch's names as text."""

from __future__ import annotations

# code in the file -> (torch's name, bytes per element). The order is the library's: files are sorted by it,
# last first, so that wide types come first and every tensor is aligned.
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "C64": ("complex64", 8),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}
CODES: dict[str, str] = {name: code for code, (name, _) in DTYPES.items()}
RANKS: dict[str, int] = {name: rank for rank, (name, _) in enumerate(DTYPES.values())}
