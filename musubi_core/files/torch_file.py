"""torch's own files (.pt, .pth, .bin, .ckpt): pickles, of which only plain weights are read; no code runs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.os_errors import read_error

_WRAPPERS = ("module", "state_dict", "model")  # keys under which programs nest the weights
_MAX_NESTING = 4
_GLOBAL = re.compile(r"GLOBAL\s+([\w.]+)")  # torch names the refused function like this


def load_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a torch file by name, and the names of entries that are no tensors.

    Weights nested under "module", "state_dict" or "model" are unwrapped. Files made since torch 1.6 are
    mapped, not read: a tensor costs memory when it is used. Older ones are read whole.
    Raises BadFileError when the file is damaged, holds code, or holds no tensors.
    """
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and _starts_like_zip(path):
        raise BadFileError(f"{path} is cut off: its end is missing. Fetch it again.")
    try:
        content = _load(path, mapped=is_zip and path.suffix.lower() != ".safetensors")
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, and none of them documented
        raise _refusal(path, error) from error
    weights, ignored = _unwrap(content)
    if not weights:
        raise BadFileError(
            f"{path} holds no tensors ({type(content).__name__} with {_some(ignored)}). Expected the weights "
            "of a model."
        )
    return weights, ignored


def _load(path: Path, *, mapped: bool) -> Any:
    """torch maps a file by its name only, and takes names ending in .safetensors at their word."""
    if mapped:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Follow the wrappers down to the first table with tensors; what is passed by counts as ignored."""
    ignored: list[str] = []
    for _ in range(_MAX_NESTING):
        if not isinstance(content, Mapping):
            break
        tensors = {key: value.detach() for key, value in content.items() if _is_weight(key, value)}
        inner = next(
            (key for key in _WRAPPERS if not tensors and isinstance(content.get(key), Mapping)), None
        )
        ignored += [str(key) for key in content if key not in tensors and key != inner]
        if inner is None:
            return tensors, tuple(ignored)
        content = content[inner]
    return {}, tuple(ignored)


def _is_weight(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _refusal(path: Path, error: Exception) -> BadFileError:
    code = _GLOBAL.search(str(error))
    if code:
        return BadFileError(
            f"{path} contains code ({code.group(1)}) that would run on loading. It was not executed and the "
            "file was not used. Use a .safetensors version of these weights."
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, EOFError):
        return read_error(path, error)
    first = (str(error).strip().splitlines() or [""])[0][:200]
    if "weights_only" in first:  # torch's own advice is to read the file unsafely
        first = "it holds other things than tensors, or is damaged"
    return BadFileError(
        f"{path} is not a whole torch file with plain weights ({type(error).__name__}: {first}). Fetch it "
        "again, or use a .safetensors version of these weights."
    )


def _starts_like_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError as error:
        raise read_error(path, error) from error


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return "nothing in it"
    return ", ".join(repr(name) for name in names[:5]) + (" and more" if len(names) > 5 else "")
