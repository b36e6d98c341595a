"""What a file is, in one short text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from musubi_core.errors import BadFileError
from musubi_core.files.os_errors import read_error

_CHUNK = 1 << 20
_HEAD = 4 << 20  # read whole: it holds the header of practically every file
_BLOCK = 1 << 16
_BLOCKS = 128
_IDENTITY_SUFFIXES = frozenset(
    (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json", ".model", ".txt", ".jinja", ".tiktoken")
)


def content_hash(path: Path) -> str:
    """sha256 of all bytes of a file, as 64 hexadecimal digits. Raises BadFileError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise read_error(path, error) from error
    return digest.hexdigest()


def weights_identity(path: Path) -> str:
    """A text that changes when the weights change, found in a moment even for 20 GB; 64 hexadecimal digits.

    It does not depend on name, place or date. A file of up to 12 MiB is read whole; of a larger one its size,
    the first 4 MiB and 128 evenly spread blocks of 64 KiB count, the last one at the very end. Another
    precision, a merge, another training step or a cut file change nearly every block, and a changed stretch
    of 1/100 of the file is always seen; an edit of a few bytes mostly not. A folder counts with its weight,
    configuration and tokenizer files (hidden ones not) and their names. Raises BadFileError when nothing is
    there or it cannot be read.
    """
    if not path.is_dir():
        return _file_identity(path)
    digest = hashlib.sha256()
    files = sorted(_identity_files(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise BadFileError(f"{path} holds no weights, configuration or tokenizer. Give the model's folder.")
    for file in files:
        digest.update(
            f"{file.relative_to(path).as_posix()}\0{_file_identity(file)}\0".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def _identity_files(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _IDENTITY_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _file_identity(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            for start, length in _sampled(size):
                file.seek(start)
                digest.update(file.read(length))
    except OSError as error:
        raise read_error(path, error) from error
    return digest.hexdigest()


def _sampled(size: int) -> list[tuple[int, int]]:
    """(start, length) of the parts that count."""
    if size <= _HEAD + _BLOCKS * _BLOCK:
        return [(start, _CHUNK) for start in range(0, size, _CHUNK)]
    last = size - _BLOCK
    starts = [_HEAD + (last - _HEAD) * number // (_BLOCKS - 1) for number in range(_BLOCKS)]
    return [*((start, _CHUNK) for start in range(0, _HEAD, _CHUNK)), *((start, _BLOCK) for start in starts)]
