"""Unfinished files of killed runs: how they are named, told from live ones, and cleared.

Everything that is being written has a hidden temporary name beside its target:

    .musubi-<token>.tmp         a file or folder that is not complete; worthless once its writer is dead
    .musubi-<token>.old/<name>  a complete folder, set aside while its successor takes its place

The names do not contain the target's own name, so that a target with the longest legal name can be written.
A writer holds a lock (POSIX: flock) on what it writes; the kernel releases it when the process dies, however
that happens. Windows cannot lock a folder, but neither can it delete a file that is open: there, leftover
files are known by that, and folders by being a day old.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".musubi-"
UNFINISHED = ".tmp"
SET_ASIDE = ".old"
_DAY = 24 * 60 * 60.0


def unfinished_beside(target: Path) -> Path:
    """A new temporary name in the folder of `target`."""
    return target.parent / f"{PREFIX}{secrets.token_hex(8)}{UNFINISHED}"


def set_aside_beside(target: Path) -> Path:
    """A new name for the box in which the folder `target` waits while it is being replaced."""
    return target.parent / f"{PREFIX}{secrets.token_hex(8)}{SET_ASIDE}"


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """While inside, others see that `path` (a file or folder) has a living writer."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        _try_lock(handle)
        yield
    finally:
        os.close(handle)


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove what killed writers left in `folder`, and put back folders that they had set aside.

    Returns what was removed or put back. What a living process is writing stays; so does what cannot be
    removed, because a leftover is no reason to stop a job.
    """
    mended: list[Path] = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        if path.suffix not in (UNFINISHED, SET_ASIDE) or _has_writer(path):
            continue
        with contextlib.suppress(OSError):
            mended += _put_back(path) if path.suffix == SET_ASIDE else []
            _remove(path)
            mended.append(path)
    return mended


def find_folder(path: Path) -> Path | None:
    """`path` when a complete folder of that name exists, else None.

    A writer that was killed between setting the old folder aside and naming the new one leaves no folder
    under its name; the old one is complete, in its box. It is put back here, so readers of run state ask
    this function instead of `path.is_dir()`.
    """
    if not path.is_dir():
        for box in path.parent.glob(f"{PREFIX}*{SET_ASIDE}"):
            if (box / path.name).is_dir() and not _has_writer(box):
                _put_back(box)
                _remove(box)
    return path if path.is_dir() else None


def _put_back(box: Path) -> list[Path]:
    """Rename what waits in a box to its own name, unless its successor has arrived."""
    back: list[Path] = []
    for inner in box.iterdir():
        home = box.parent / inner.name
        if not home.exists():
            inner.rename(home)
            back.append(home)
    return back


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _has_writer(path: Path) -> bool:
    if fcntl is None:
        return path.is_dir() and time.time() - path.stat().st_mtime < _DAY
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return True  # gone meanwhile, or not ours to open: leave it alone
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Whether the lock was free. A disk that knows no locks answers yes."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
