"""What the operating system's errors mean to the user, and what to do about them."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection
from pathlib import Path

from musubi_core.errors import BadFileError

DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


def read_error(path: Path, error: OSError) -> BadFileError:
    """The error to raise when `path` could not be read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return BadFileError(f"{path} does not exist. Give the path of an existing file.")
    if error.errno == errno.EISDIR or (error.errno == errno.EACCES and path.is_dir()):  # EACCES: Windows
        return BadFileError(f"{path} is a folder; expected a file.")
    if error.errno in _FORBIDDEN:
        return BadFileError(f"{path} cannot be read: permission denied. Allow reading it, or use a copy.")
    if error.errno == errno.ENAMETOOLONG:
        return BadFileError(f"{path}: this name is longer than the disk allows, so no such file can exist.")
    return BadFileError(f"{path} cannot be read: {_reason(error)}. Check the disk, or fetch the file again.")


def write_error(path: Path, error: OSError) -> BadFileError:
    """The error to raise when `path` (a file or a folder) could not be written."""
    if error.errno in DISK_FULL:
        return BadFileError(
            f"{path} was not written: the disk is full ({_reason(error)}). What was there before is "
            f"unchanged. Free space on the disk of {path.parent}, or choose an output folder on another disk."
        )
    if error.errno in _FORBIDDEN:
        return BadFileError(
            f"{path} cannot be written: permission denied. Choose a folder that you may write to, and close "
            "programs that have the file open."
        )
    if error.errno == errno.EROFS:
        return BadFileError(
            f"{path} cannot be written: the disk is read-only. Choose an output folder on another disk."
        )
    if error.errno == errno.ENAMETOOLONG:
        return BadFileError(
            f"{path} cannot be written: the name {path.name!r} ({len(path.name)} characters), or the whole "
            "path, is longer than the disk allows. Choose a shorter output name."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return BadFileError(
            f"{path} cannot be written: a part of its path is a file, not a folder. Choose another folder."
        )
    if error.errno == errno.EISDIR:
        return BadFileError(f"{path} cannot be written: a folder of that name exists. Choose another name.")
    return BadFileError(f"{path} cannot be written: {_reason(error)}. Check the disk or use another folder.")


def missing_tensor(path: Path, name: str, present: Collection[str]) -> BadFileError:
    """The error to raise when the file `path` lacks a tensor; `present` are the names it has."""
    close = difflib.get_close_matches(name, present, n=1) if len(present) < 5000 else []
    hint = f" The nearest is {close[0]!r}." if close else ""
    return BadFileError(f"{path} has no tensor {name!r}; it has {len(present)} others.{hint}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
