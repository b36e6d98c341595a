"""Model weights in whatever file they come: safetensors, in one file or in shards, or torch's own format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.file_kind import PICKLES, ZIP, looks_like_safetensors
from musubi_core.files.os_errors import missing_tensor, read_error
from musubi_core.files.shards import Shards, find_shards
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import TensorFile
from musubi_core.files.torch_file import load_weights

__all__ = ["Checkpoint", "open_checkpoint"]


class Checkpoint:
    """Open weights: what there is, by name, and reading one tensor at a time.

    header: shape and number type by name. metadata: of a safetensors file (of shards: all, the first wins),
    else empty. ignored: names of entries of a torch file that are no tensors. Use as a context manager.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, TensorInfo],
        read: Callable[[str, bool], Tensor],
        read_rows: Callable[[str, int, int], Tensor],
        *,
        metadata: Mapping[str, str] | None = None,
        ignored: Sequence[str] = (),
        close: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.header = header
        self.metadata = metadata or {}
        self.ignored = tuple(ignored)
        self._read = read
        self._read_rows = read_rows
        self._close = close

    def read(self, name: str, *, own_memory: bool = False) -> Tensor:
        """One tensor on the CPU.

        From safetensors it is always a copy. From a torch file it may be a window into the file, which is not
        read before it is used and keeps the file open as long as the tensor lives; own_memory: copy it.
        Raises BadFileError for a name that is not there.
        """
        if name not in self.header:
            raise missing_tensor(self.path, name, self.header)
        return self._read(name, own_memory)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """The range [start, stop) of a tensor's first axis on the CPU: a copy, or a window as `read` says.

        Raises BadFileError for a name that is not there.
        """
        if name not in self.header:
            raise missing_tensor(self.path, name, self.header)
        return self._read_rows(name, start, stop)

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint; the form is told by the content, not by the ending of the name.

    path: a .safetensors, .pt, .pth, .bin or .ckpt file; a folder with one such file or with shards; an
    index (*.index.json); or one shard (*-00001-of-00004.safetensors), which stands for all of them.
    Raises BadFileError: missing, damaged, foreign, or with code in it. Code is never executed.
    """
    found = find_shards(path)
    if len(found.files) == 1 and not found.names:
        return _open_file(found.files[0])
    return _open_shards(path, found)


def _open_file(path: Path) -> Checkpoint:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise read_error(path, error) from error
    if start.startswith((ZIP, *PICKLES)) and not looks_like_safetensors(start):
        return _open_torch(path)
    return _open_safetensors(path)  # its reader says what else the file may be


def _open_shards(path: Path, shards: Shards) -> Checkpoint:
    """One checkpoint out of several files, all of them open. No tensor may be in two of them."""
    owner: dict[str, Checkpoint] = {}
    metadata: dict[str, str] = {}
    ignored: list[str] = []
    with ExitStack() as stack:
        for file in shards.files:
            part = stack.enter_context(_open_file(file))
            twice = owner.keys() & part.header.keys()
            if twice:
                raise BadFileError(
                    f"{path}: tensor {min(twice)!r} is in {owner[min(twice)].path.name} and in {file.name}. "
                    "These files are not the parts of one checkpoint; give the path of one file."
                )
            owner.update(dict.fromkeys(part.header, part))
            metadata = {**part.metadata, **metadata}
            ignored += part.ignored
        missing = shards.names - owner.keys()
        if missing:
            raise BadFileError(
                f"{path} lists {len(missing)} tensors that its files lack (first: {min(missing)!r}). Fetch "
                "the files again, all from the same place."
            )
        return Checkpoint(
            path,
            {name: part.header[name] for name, part in owner.items()},
            lambda name, own_memory: owner[name].read(name, own_memory=own_memory),
            lambda name, start, stop: owner[name].read_rows(name, start, stop),
            metadata=metadata,
            ignored=ignored,
            close=stack.pop_all().close,
        )


def _open_safetensors(path: Path) -> Checkpoint:
    file = TensorFile(path)
    return Checkpoint(
        path,
        file.header.tensors,
        lambda name, own_memory: file.read(name),
        file.read_rows,
        metadata=file.metadata,
        close=file.close,
    )


def _open_torch(path: Path) -> Checkpoint:
    tensors, ignored = load_weights(path)
    header = {
        name: TensorInfo(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
    return Checkpoint(
        path,
        header,
        lambda name, own_memory: tensors[name].clone() if own_memory else tensors[name],
        lambda name, start, stop: tensors[name][start:stop],
        ignored=ignored,
        close=tensors.clear,
    )
