"""Files and folders that are whole or absent, whatever happens while they are written.

A file is written under a temporary name beside its target, flushed to the disk and renamed. The target is
either the old file or the new one, never a part. See `leftovers` for what a killed process leaves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from musubi_core.errors import BadFileError
from musubi_core.files.leftovers import claimed, clear_leftovers, set_aside_beside, unfinished_beside
from musubi_core.files.os_errors import DISK_FULL, write_error

SPACE_MARGIN = 16 * 1024 * 1024  # left free for what else lives on the disk
_BROKEN_WRITE = DISK_FULL | {errno.EROFS, errno.EIO}  # what writing to an open file can raise


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; on leaving the block the complete file takes its place.

    Missing folders are made. On any exception nothing is left behind and an older file is untouched.
    Raises BadFileError when the disk is full, the folder is unwritable or the name is too long.
    """
    with _explained(path):
        _refuse_impossible(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = unfinished_beside(path)
        temp.touch(exist_ok=False)
    try:
        with claimed(temp):
            with _explained(path, only=_BROKEN_WRITE), temp.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with _explained(path):
                temp.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to show
            temp.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving the block it takes the place of `path`, with all its files.

    On an exception nothing is left behind and an older folder is untouched. A folder cannot be renamed over
    another, so for a moment the older one waits under a hidden name: after a crash right there,
    `leftovers.find_folder(path)` brings it back. Raises BadFileError as `replace_file` does.
    """
    with _explained(path):
        _refuse_impossible(path, folder=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        temp = unfinished_beside(path)
        temp.mkdir()
    try:
        with claimed(temp):
            with _explained(path, only=_BROKEN_WRITE):
                yield temp
            with _explained(path):
                _flush_tree(temp)
                _swap_in(temp, path)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all. Line ends are kept as given."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write data as indented UTF-8 JSON. ValueError for NaN and infinity: JSON has no such numbers."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_space(folder: Path, needed: int, *, what: str) -> None:
    """Raise BadFileError when the disk of `folder` has less than `needed` bytes and a margin.

    folder: need not exist yet. what: named in the message, e.g. "the run state".
    """
    place = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path.cwd())
    with _explained(folder):
        usage = shutil.disk_usage(place)
    if not usage.total:
        return  # some network disks do not tell
    if usage.free < needed + SPACE_MARGIN:
        raise BadFileError(
            f"{folder}: {what} needs {_megabytes(needed)} and the disk has {_megabytes(usage.free)} free "
            f"({_megabytes(SPACE_MARGIN)} must stay free). Free space, or choose a folder on another disk."
        )


def check_writable(folder: Path) -> None:
    """Prove that files can be made in `folder`, which is created if missing. Raises BadFileError.

    Also clears what a killed run has left there.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        probe = unfinished_beside(folder / "probe")
        with probe.open("xb"):
            pass
        probe.unlink()


@contextlib.contextmanager
def _explained(path: Path, *, only: frozenset[int] | None = None) -> Iterator[None]:
    """Turn OSError into BadFileError about `path`.

    only: the errors that count, and only from an open file (they carry no file name). For the caller's block,
    whose other errors are about other files.
    """
    try:
        yield
    except OSError as error:
        if only is not None and (error.errno not in only or error.filename is not None):
            raise
        raise write_error(path, error) from error


def _refuse_impossible(path: Path, *, folder: bool = False) -> None:
    """Raise OSError for a name that the disk refuses or that the other kind has: before work, not after."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    if path.is_dir() != folder:
        code = errno.EEXIST if folder else errno.EISDIR
        raise OSError(code, os.strerror(code), str(path))


def _swap_in(temp: Path, path: Path) -> None:
    """Rename the folder `temp` to `path`; an older folder there is set aside first, then removed."""
    if not path.exists():
        temp.rename(path)
        _flush_folder(path.parent)
        return
    box = set_aside_beside(path)
    box.mkdir()
    with claimed(box):
        waiting = path.rename(box / path.name)
        try:
            temp.rename(path)
        except BaseException:
            waiting.rename(path)
            box.rmdir()
            raise
        _flush_folder(path.parent)
        shutil.rmtree(box, ignore_errors=True)  # what stays is cleared with the next write


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent, name), os.O_RDWR)  # Windows flushes only what may be written
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system has such a call."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network disks refuse; the rename itself has been done
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
