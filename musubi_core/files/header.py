"""The header of a safetensors file, read as if the file were an attack.

A file is: 8 bytes with the length of the header (little endian), the header (JSON: tensors by name, and
"__metadata__"), the bytes of the tensors. The JSON is read by a scanner that knows exactly this form, so that
nothing can nest, repeat or grow beyond the limits below. Torch-free.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NoReturn

from musubi_core.errors import BadFileError
from musubi_core.files.dtypes import DTYPES
from musubi_core.files.file_kind import foreign_kind
from musubi_core.files.os_errors import read_error
from musubi_core.files.tensor_info import TensorInfo

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_TENSORS = 200_000  # the largest sharded models have some 100,000 in all their files
MAX_METADATA = 100_000
MAX_NAME = 4096  # characters of a tensor's name
MAX_RANK = 32
MAX_BYTES = 2**62  # of one tensor, counting an axis of length 0 as 1: torch's strides must not overflow


class Defect(Enum):
    """Every way in which a safetensors file can be wrong."""

    FOREIGN = "is not a safetensors file"
    TOO_SHORT = "ends before its header does"
    HEADER_TOO_LARGE = "declares a header larger than any real one"
    NOT_UTF8 = "has a header that is not UTF-8 text"
    NOT_JSON = "has a header that is not of the safetensors form"
    DUPLICATE_NAME = "has a name twice"
    NAME_TOO_LONG = "has a tensor whose name is too long"
    TOO_MANY_TENSORS = "declares more tensors than any real file"
    TOO_MUCH_METADATA = "has more metadata entries than any real file"
    BAD_METADATA = "has metadata that is not a table of texts"
    BAD_FIELD = "has a tensor whose entry is incomplete or malformed"
    UNKNOWN_DTYPE = "has a tensor of an unknown number type"
    RANK_TOO_LARGE = "has a tensor with too many axes"
    SHAPE_TOO_LARGE = "has a tensor whose size overflows"
    SIZE_MISMATCH = "has a tensor whose bytes do not fit its shape"
    OVERLAP = "has tensors that share bytes"
    HOLE = "has bytes that belong to no tensor"
    TRUNCATED = "ends before its last tensor does"
    TRAILING_BYTES = "has bytes after its last tensor"
    BAD_BOOL = "has a truth value that is neither 0 nor 1"


class TensorFileError(BadFileError):
    """A safetensors file with a defect."""

    def __init__(self, path: Path, defect: Defect, detail: str) -> None:
        super().__init__(
            f"{path} {defect.value}: {detail}. Expected a whole safetensors file; it is damaged or of "
            "another kind. Fetch or make it again."
        )
        self.defect = defect


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor(TensorInfo):
    """One tensor and where its bytes are: [start, end) counted from the end of the header."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """All that a safetensors file says of itself. tensors: in the order of their bytes."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int  # offset of the first tensor byte in the file


def read_header(path: Path) -> TensorHeader:
    """The checked header of a safetensors file. Raises BadFileError (TensorFileError for a defect)."""
    try:
        with path.open("rb", buffering=0) as file:
            return header_of(file, path)
    except OSError as error:
        raise read_error(path, error) from error


def header_of(file: BinaryIO, path: Path) -> TensorHeader:
    """Read the header from an open file (path is for messages). Raises TensorFileError and OSError."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(64)
    kind = foreign_kind(start)
    if kind:
        raise TensorFileError(path, Defect.FOREIGN, f"it is {kind}")
    if len(start) < 8:
        raise TensorFileError(path, Defect.TOO_SHORT, f"it has {size} bytes, a header needs at least 10")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        limit = f"{length:,} bytes, the limit is {MAX_HEADER_BYTES:,}"
        raise TensorFileError(path, Defect.HEADER_TOO_LARGE, limit)
    if length < 2 or length > size - 8:
        detail = f"the header should have {length:,} bytes, the file has {size:,}"
        raise TensorFileError(path, Defect.TOO_SHORT, detail)
    file.seek(8)
    raw = _read_exactly(file, length)
    if len(raw) < length:
        raise TensorFileError(
            path, Defect.TOO_SHORT, f"{len(raw):,} of {length:,} header bytes could be read"
        )
    tensors, metadata = _Scanner(raw, path).header()
    return TensorHeader(
        tensors=_in_order(tensors, size - 8 - length, path), metadata=metadata, data_start=8 + length
    )


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the file: an unbuffered read may return a part."""
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _in_order(tensors: dict[str, StoredTensor], data_bytes: int, path: Path) -> dict[str, StoredTensor]:
    """The tensors sorted by their bytes, which must follow each other from the first byte to the last."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    reached = 0
    for name, tensor in ordered:
        if tensor.start != reached:
            defect = Defect.OVERLAP if tensor.start < reached else Defect.HOLE
            detail = f"{name!r} starts at byte {tensor.start:,}, the tensor before it ends at {reached:,}"
            raise TensorFileError(path, defect, detail)
        reached = tensor.end
    if reached != data_bytes:
        defect = Defect.TRUNCATED if reached > data_bytes else Defect.TRAILING_BYTES
        detail = f"the tensors need {reached:,} bytes, the file has {data_bytes:,} for them"
        raise TensorFileError(path, defect, detail)
    return dict(ordered)


class _Scanner:
    """Reads {"name": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "text"}}.

    Holds the text and the position reached. Nothing else than this form is JSON to it.
    """

    _space = re.compile(r"[ \t\n\r]*")
    _number = re.compile(r"0|[1-9][0-9]{0,18}(?![0-9])")  # at most 19 digits: what a file offset can be
    _strings = json.JSONDecoder()

    def __init__(self, raw: bytes, path: Path) -> None:
        self.path = path
        try:
            self.text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(Defect.NOT_UTF8, f"{error.reason} at byte {error.start} of the header")
        self.at = 0

    def header(self) -> tuple[dict[str, StoredTensor], dict[str, str]]:
        """Everything, to the last byte."""
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, str] | None = None
        for name in self.members("the header"):
            if name in tensors or (name == "__metadata__" and metadata is not None):
                self.fail(Defect.DUPLICATE_NAME, repr(name[:200]))
            if name == "__metadata__":
                metadata = self.metadata()
                continue
            if len(name) > MAX_NAME:
                self.fail(Defect.NAME_TOO_LONG, f"{name[:60]!r}... has {len(name):,} characters")
            if len(tensors) == MAX_TENSORS:
                self.fail(Defect.TOO_MANY_TENSORS, f"the limit is {MAX_TENSORS:,}")
            tensors[name] = self.tensor(name)
        self.skip_space()
        if self.at != len(self.text):
            self.fail(Defect.NOT_JSON, f"text follows its end, at character {self.at}")
        return tensors, metadata or {}

    def metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.next_character() != "{":
            self.fail(Defect.BAD_METADATA, "it is no table")
        for key in self.members("__metadata__"):
            if key in found:
                self.fail(Defect.DUPLICATE_NAME, f"metadata {key[:200]!r}")
            if len(found) == MAX_METADATA:
                self.fail(Defect.TOO_MUCH_METADATA, f"the limit is {MAX_METADATA:,}")
            if self.next_character() != '"':
                self.fail(Defect.BAD_METADATA, f"the value of {key[:200]!r} is no text")
            found[key] = self.string()
        return found

    def tensor(self, name: str) -> StoredTensor:
        """One entry, checked by itself: fields, number type, and bytes = shape * size of a number."""
        where = f"tensor {name[:200]!r}"
        if self.next_character() != "{":
            self.fail(Defect.BAD_FIELD, f"{where} is no table")
        fields: dict[str, str | tuple[int, ...]] = {}
        for field in self.members(where):
            if field not in ("dtype", "shape", "data_offsets") or field in fields:
                self.fail(Defect.BAD_FIELD, f"{where} has an unknown or repeated field {field[:200]!r}")
            fields[field] = self.code(where) if field == "dtype" else self.numbers(f"{field} of {where}")
        code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(code, str) or not isinstance(shape, tuple) or not isinstance(offsets, tuple):
            self.fail(Defect.BAD_FIELD, f"{where} lacks dtype, shape or data_offsets")
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            self.fail(Defect.BAD_FIELD, f"{where} has data_offsets {list(offsets)}; expected start and end")
        if code not in DTYPES:
            self.fail(Defect.UNKNOWN_DTYPE, f"{where} has {code[:40]!r}")
        dtype, width = DTYPES[code]
        needed = self.byte_count(shape, width, where)
        if needed != offsets[1] - offsets[0]:
            detail = (
                f"{where} ({code}, shape {list(shape)}) needs {needed:,}, has {offsets[1] - offsets[0]:,}"
            )
            self.fail(Defect.SIZE_MISMATCH, detail)
        return StoredTensor(shape=shape, dtype=dtype, start=offsets[0], end=offsets[1])

    def byte_count(self, shape: Iterable[int], width: int, where: str) -> int:
        extent, elements = width, width
        for length in shape:
            extent *= max(length, 1)
            elements *= length
            if extent > MAX_BYTES:
                self.fail(Defect.SHAPE_TOO_LARGE, f"{where} has shape {shape}")
        return elements

    def members(self, where: str) -> Iterable[str]:
        """Yield each key of a table, with the position just behind the colon; the caller reads the value."""
        self.take("{", where)
        if self.next_character() == "}":
            self.at += 1
            return
        while True:
            key = self.string()
            self.take(":", where)
            yield key
            if self.next_character() == "}":
                self.at += 1
                return
            self.take(",", where)

    def numbers(self, where: str) -> tuple[int, ...]:
        """A list of whole numbers, none negative, at most MAX_RANK."""
        if self.next_character() != "[":
            self.fail(Defect.BAD_FIELD, f"{where} is no list")
        self.at += 1
        found: list[int] = []
        if self.next_character() == "]":
            self.at += 1
            return ()
        while True:
            number = self._number.match(self.text, self.at)
            if number is None:
                self.fail(Defect.BAD_FIELD, f"{where} holds something else than whole numbers")
            if len(found) == MAX_RANK:
                self.fail(Defect.RANK_TOO_LARGE, f"{where} has more than {MAX_RANK} numbers")
            found.append(int(number.group()))
            self.at = number.end()
            sign = self.next_character()
            if sign not in ("]", ","):
                self.fail(Defect.BAD_FIELD, f"{where} holds something else than whole numbers")
            self.at += 1
            if sign == "]":
                return tuple(found)
            self.skip_space()

    def code(self, where: str) -> str:
        if self.next_character() != '"':
            self.fail(Defect.BAD_FIELD, f"the dtype of {where} is no text")
        return self.string()

    def string(self) -> str:
        """A JSON string at the position, after white space."""
        if self.next_character() != '"':
            self.fail(Defect.NOT_JSON, f"a text is missing at character {self.at}")
        try:
            text, self.at = self._strings.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.fail(Defect.NOT_JSON, f"{error.msg} at character {error.pos}")
        return text

    def take(self, sign: str, where: str) -> None:
        if self.next_character() != sign:
            self.fail(Defect.NOT_JSON, f"{sign!r} is missing in {where}, at character {self.at}")
        self.at += 1

    def next_character(self) -> str:
        """The character at the position after white space, "" at the end; it is not consumed."""
        sign = self.text[self.at : self.at + 1]
        if sign > " ":
            return sign  # the usual case: files are written without spaces
        self.skip_space()
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> None:
        space = self._space.match(self.text, self.at)
        self.at = space.end() if space else self.at

    def fail(self, defect: Defect, detail: str) -> NoReturn:
        raise TensorFileError(self.path, defect, detail)
