"""Writing safetensors files, one tensor in memory at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from musubi_core.files.dtypes import CODES, RANKS
from musubi_core.files.replace import check_space, replace_file
from musubi_core.files.tensor_info import TensorInfo

MODEL_HASH = "sshs_model_hash"
LEGACY_HASH = "sshs_legacy_hash"
_LEGACY_START, _LEGACY_END = 0x100000, 0x110000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    code: str
    rank: int
    size: int


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    sshs_hashes: bool = False,
) -> None:
    """Write a safetensors file, whole or not at all, in the order and with the bytes of the library.

    Metadata keys stand in the order given (the library's is random). sshs_hashes: add the two hashes by which
    LoRA tools recognise a file; they cover the tensors and, through its length, the `ss_*` metadata.
    Tensors that share memory are written each by itself. Raises BadFileError when it cannot be written.
    """
    infos = {name: _info(name, tensor) for name, tensor in tensors.items()}
    write_made(path, infos, tensors.__getitem__, metadata, sshs_hashes=sshs_hashes)


def write_made(
    path: Path,
    infos: Mapping[str, TensorInfo],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    sshs_hashes: bool = False,
) -> None:
    """As `write_tensors`, for tensors that are made only when their turn comes.

    infos: what every tensor will be. make(name) is called once each, in the order of the file, and must
    give that shape and dtype; ValueError otherwise, and nothing is written. It holds one tensor at a time.
    """
    with open_writer(path, infos, metadata, sshs_hashes=sshs_hashes) as writer:
        for name in writer.order:
            writer.add(make(name))


@contextlib.contextmanager
def open_writer(
    path: Path,
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str] | None = None,
    *,
    sshs_hashes: bool = False,
) -> Generator[TensorWriter, None, None]:
    """A file that is filled tensor by tensor, in `writer.order`, and is there only when all were added.

    Leaving without all of them is a ValueError, and no file. Several may be open at once.
    """
    entries = sorted((_entry(*item) for item in infos.items()), key=lambda entry: (-entry.rank, entry.name))
    words = None if metadata is None else {key: _plain_text(key, value) for key, value in metadata.items()}
    hashes = _Hashes(_header(entries, _ss_only(words or {}))) if sshs_hashes else None
    if hashes:
        words = {**(words or {}), **hashes.placeholders()}
    header = _header(entries, words)
    check_space(path.parent, len(header) + sum(entry.size for entry in entries), what=path.name)
    with replace_file(path) as file:
        file.write(header)
        writer = TensorWriter(file, entries, hashes)
        yield writer
        writer.finish()
        if hashes:  # they have a fixed length, so the header keeps its size
            file.seek(0)
            file.write(_header(entries, {**(words or {}), **hashes.values()}))


class TensorWriter:
    """The tensors of one file, one after the other. See `open_writer`."""

    def __init__(self, file: BinaryIO, entries: list[_Entry], hashes: _Hashes | None) -> None:
        self._file = file
        self._hashes = hashes
        self._waiting = entries[::-1]
        self.order = tuple(entry.name for entry in entries)

    def add(self, tensor: Tensor) -> None:
        """Write the next tensor of `order`. Raises ValueError when it is not what was announced."""
        entry = self._waiting.pop()
        dtype = _dtype_name(tensor)
        if tuple(tensor.shape) != entry.shape or CODES.get(dtype) != entry.code:
            raise ValueError(
                f"{entry.name} was announced as {entry.code} {list(entry.shape)}, but is {dtype} "
                f"{list(tensor.shape)}."
            )
        data = _bytes_of(tensor)
        self._file.write(data)
        if self._hashes:
            self._hashes.add(data)

    def finish(self) -> None:
        if self._waiting:
            raise ValueError(f"{self._waiting[-1].name} and later tensors were announced, but not written.")


class _Hashes:
    """sshs hashes, fed with the tensor bytes in file order.

    The model hash is sha256 over all tensor bytes. The legacy hash is the start of sha256 over 64 KiB from
    1 MiB on, of the file as it would be with only `ss_*` metadata; that part is empty in small files.
    """

    def __init__(self, ss_header: bytes) -> None:
        self._model = hashlib.sha256()
        self._legacy = hashlib.sha256()
        self._at = 0
        self._add_legacy(memoryview(ss_header))

    def add(self, data: memoryview) -> None:
        self._model.update(data)
        self._add_legacy(data)

    def _add_legacy(self, data: memoryview) -> None:
        self._legacy.update(data[max(_LEGACY_START - self._at, 0) : max(_LEGACY_END - self._at, 0)])
        self._at += len(data)

    @staticmethod
    def placeholders() -> dict[str, str]:
        return {MODEL_HASH: "0" * 64, LEGACY_HASH: "0" * 8}

    def values(self) -> dict[str, str]:
        return {MODEL_HASH: self._model.hexdigest(), LEGACY_HASH: self._legacy.hexdigest()[:8]}


def _info(name: str, tensor: Tensor) -> TensorInfo:
    """What the header says of a tensor, which may be anywhere and of any layout until its turn comes."""
    dtype = _dtype_name(tensor)
    if dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(
            f"{name}: a {dtype} tensor ({tensor.layout}, {tensor.device}) has no safetensors form."
        )
    return TensorInfo(shape=tuple(tensor.shape), dtype=dtype)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _entry(name: str, info: TensorInfo) -> _Entry:
    if name == "__metadata__":
        raise ValueError("__metadata__ is not a name for a tensor.")
    size = math.prod(info.shape) * getattr(torch, info.dtype).itemsize
    return _Entry(name=name, shape=info.shape, code=CODES[info.dtype], rank=RANKS[info.dtype], size=size)


def _header(entries: list[_Entry], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON, padded with spaces to a multiple of 8 bytes as the library does."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for entry in entries:
        end = start + entry.size
        table[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ss_only(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith("ss_")}


def _plain_text(key: str, value: str) -> str:
    """A text that UTF-8 can hold. Paths with bytes that are no UTF-8 reach Python as lone surrogates."""
    if not isinstance(value, str):
        raise TypeError(f"metadata {key} is a {type(value).__name__}; safetensors holds texts only.")
    return value.encode("utf-8", "replace").decode("utf-8")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as contiguous bytes on the CPU; a copy only where needed."""
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    row = plain.as_strided((plain.numel(),), (1,))  # a single number may come with any stride
    return row.view(torch.uint8).numpy().data
