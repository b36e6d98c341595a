"""Content hashes of media files, remembered so that an unchanged folder is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from musubi_core.errors import BadFileError
from musubi_core.events import ShouldStop
from musubi_core.files.digest import content_hash


class MediaHashes:
    """Hash of each file, by path, trusted while the file's size and time of change stay the same."""

    def __init__(self, remembered: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._remembered = dict(remembered or {})
        self._known: dict[Path, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> str:
        """The hash of a file, or of a folder of numbered pictures. Raises BadFileError."""
        with self._lock:
            known = self._known.get(path)
        if known is None:
            known = self._look_up(path)
            with self._lock:
                self._known[path] = known
        return str(known["sha256"])

    def read(self, paths: Iterable[Path], *, workers: int, should_stop: ShouldStop) -> Iterator[Path]:
        """Hash files with several threads; yields each path that is done.

        A file that cannot be read raises later, when its hash is asked for.
        """

        def one(path: Path) -> Path:
            if not should_stop():
                with contextlib.suppress(BadFileError):
                    self(path)
            return path

        with ThreadPoolExecutor(workers, thread_name_prefix="media-hash") as pool:
            yield from pool.map(one, dict.fromkeys(paths))

    def facts(self) -> dict[str, dict[str, Any]]:
        """What to remember: path -> size, time of change, hash of every file asked for."""
        return {str(path.absolute()): dict(facts) for path, facts in sorted(self._known.items())}

    def _look_up(self, path: Path) -> dict[str, Any]:
        state = _state(path)
        before = self._remembered.get(str(path.absolute()), {})
        if all(before.get(name) == value for name, value in state.items()) and "sha256" in before:
            return dict(before)
        return {**state, "sha256": _hash(path)}


def _state(path: Path) -> dict[str, int]:
    """Size and time of change; for a folder, of all files in it together."""
    try:
        stats = [file.stat() for file in _files(path)]
    except OSError as error:
        raise BadFileError(
            f"{path} cannot be read: {error.strerror}. Check the file and run again."
        ) from None
    return {
        "size": sum(stat.st_size for stat in stats),
        "mtime_ns": max((stat.st_mtime_ns for stat in stats), default=0),
        "files": len(stats),
    }


def _hash(path: Path) -> str:
    if not path.is_dir():
        return content_hash(path)
    parts = [f"{file.name}\n{content_hash(file)}\n" for file in _files(path)]
    return hashlib.sha256("".join(parts).encode("utf-8")).hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
