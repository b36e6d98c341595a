"""safetensors files: read tensor by tensor into memory of their own, write whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.header import (
    Defect,
    StoredTensor,
    TensorFileError,
    TensorHeader,
    header_of,
    read_header,
)
from musubi_core.files.os_errors import missing_tensor, read_error
from musubi_core.files.tensor_writer import open_writer, write_made, write_tensors

__all__ = [
    "Defect",
    "StoredTensor",
    "TensorFile",
    "TensorFileError",
    "TensorHeader",
    "open_writer",
    "read_header",
    "read_tensors",
    "write_made",
    "write_tensors",
]


class TensorFile:
    """An open safetensors file. Use as a context manager; threads may share it and read in turns.

    Raises BadFileError on opening when the header lies, on reading when the file has changed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()  # reading moves the file's position
        try:
            self._file = path.open("rb", buffering=0)
            try:
                self.header = header_of(self._file, path)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise read_error(path, error) from error

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    @property
    def names(self) -> list[str]:
        """In the order of their bytes: reading in this order is the fastest."""
        return list(self.header.tensors)

    def read(self, name: str, device: torch.device | str = "cpu", *, memory: Tensor | None = None) -> Tensor:
        """One tensor, copied into memory of its own: the file may be closed or replaced afterwards.

        memory: put it there instead, into bytes (uint8) that are aligned for it and at least as many as it
        needs. Raises BadFileError when the file has no such tensor.
        """
        stored = self.header.tensors.get(name)
        if stored is None:
            raise missing_tensor(self.path, name, self.header.tensors)
        return self._read(name, stored, stored.shape, 0, memory).to(device)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """The range [start, stop) of a tensor's first axis, as `read` would give it.

        Raises BadFileError when the file has no such tensor, ValueError when it has no such rows.
        """
        stored = self.header.tensors.get(name)
        if stored is None:
            raise missing_tensor(self.path, name, self.header.tensors)
        if not stored.shape or not 0 <= start <= stop <= stored.shape[0]:
            raise ValueError(f"{name!r} of shape {stored.shape} has no rows {start} to {stop}")
        row = (stored.end - stored.start) // max(1, stored.shape[0])
        return self._read(name, stored, (stop - start, *stored.shape[1:]), start * row)

    def _read(
        self,
        name: str,
        stored: StoredTensor,
        shape: Sequence[int],
        skipped: int,
        memory: Tensor | None = None,
    ) -> Tensor:
        """A part of a tensor: `shape` of it, `skipped` bytes behind its start."""
        dtype = torch_dtype(stored.dtype, self.path)
        try:
            if memory is None:
                tensor = torch.empty(tuple(shape), dtype=dtype)
            else:
                tensor = memory[: stored.end - stored.start].view(dtype).reshape(tuple(shape))
        except (RuntimeError, MemoryError) as error:  # torch has no error of its own for this
            raise BadFileError(
                f"{self.path}: tensor {name!r} needs {stored.end - stored.start:,} bytes of memory, more "
                "than this machine gives. Close other programs, or use a smaller file."
            ) from error
        if tensor.numel():
            self._fill(tensor, stored, name, skipped)
        return tensor

    def _fill(self, tensor: Tensor, stored: StoredTensor, name: str, skipped: int) -> None:
        """Read bytes of `stored` straight into the tensor's memory."""
        numbers = tensor.reshape(-1).view(torch.uint8).numpy()
        rest = numbers.data
        try:
            with self._turn:
                self._file.seek(self.header.data_start + stored.start + skipped)
                while len(rest):
                    count = self._file.readinto(rest)  # one call reads at most 2 GB on Linux
                    if not count:
                        detail = f"{len(rest):,} bytes of {name!r} are missing"
                        raise TensorFileError(self.path, Defect.TRUNCATED, detail)
                    rest = rest[count:]
        except OSError as error:
            raise read_error(self.path, error) from error
        if stored.dtype == "bool" and numbers.max() > 1:
            raise TensorFileError(self.path, Defect.BAD_BOOL, f"in {name!r}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """All tensors of a file, or the named ones, on the CPU. Raises BadFileError."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in (file.names if names is None else names)}


def torch_dtype(name: str, path: Path) -> torch.dtype:
    """torch's dtype of that name; older versions of torch lack some. path: for the message."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise BadFileError(
            f"{path} holds numbers of type {name}, which torch {torch.__version__} does not know. Install a "
            "newer torch, or use a file in another precision."
        )
    return dtype
