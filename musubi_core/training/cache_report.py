"""What a caching job planned, made, kept and could not make, over all datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.data.cache_folder import CacheFolder
from musubi_core.data.cache_plan import State
from musubi_core.data.cache_writes import Outcome
from musubi_core.data.items import UNREADABLE, Skipped
from musubi_core.data.manifest import Entry
from musubi_core.data.scan import Scan
from musubi_core.events import FileWritten, Listener, Progress, Warned


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A media file of which a cache file could not be made."""

    source: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """Numbers of cache files. accepted: made by musubi-tuner and kept.

    failed: not empty means that the job did not do all it should. skipped: media files that the dataset does
    not use, for reasons other than damage.
    """

    written: int = 0
    reused: int = 0
    accepted: int = 0
    failed: tuple[Failure, ...] = ()
    deleted: tuple[Path, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    stopped: bool = False


class CacheRun:
    """Counts while a job runs. kind: "latents" or "text", see data.manifest."""

    def __init__(self, kind: str, scans: Sequence[Scan], emit: Listener) -> None:
        skipped = [skip for one in scans for skip in one.skipped]
        self._damaged = [
            Failure(source=skip.path, reason=skip.reason) for skip in skipped if skip.group == UNREADABLE
        ]
        self._skipped = tuple(skip for skip in skipped if skip.group != UNREADABLE)
        self._kind = kind
        self._emit = emit
        self._folders: list[CacheFolder] = []
        self._states: dict[Path, set[State]] = {}  # of all parts of a file
        self._failed: dict[Path, Failure] = {}
        self._written: set[Path] = set()
        for failure in self._damaged:
            self._warn(failure)

    def looked_at(self, path: Path, source: Path, state: State, error: str = "") -> None:
        """Note what the plan says of one part of a file."""
        self._states.setdefault(path, set()).add(state)
        if state is State.FAILED:
            self._fail(path, Failure(source=source, reason=error))

    def begin(
        self, folder: CacheFolder, entries: Mapping[str, Entry], media: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write the plan of one dataset."""
        folder.begin(entries, media)
        self._folders.append(folder)

    def took(self, outcome: Outcome) -> None:
        """Note one file that was written or failed."""
        if outcome.error:
            self._fail(outcome.path, Failure(source=outcome.source, reason=outcome.error))
        else:
            self._written.add(outcome.path)
            self._emit(FileWritten(path=outcome.path, what=f"{self._kind.removesuffix('s')} cache"))

    def _fail(self, path: Path, failure: Failure) -> None:
        if path not in self._failed:  # a second part of the same text file adds nothing
            self._failed[path] = failure
            self._warn(failure)

    def _warn(self, failure: Failure) -> None:
        text = (
            failure.reason if str(failure.source) in failure.reason else f"{failure.source} {failure.reason}"
        )
        self._emit(Warned(text=f"Not cached: {text}"))

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        self._emit(Progress(stage=stage, done=done, total=total, text=text))

    def finish(self, *, keep_stale: bool, quiet: bool) -> CacheReport:
        """Delete what is stale and write the manifests. quiet: no warning about accepted files of others."""
        deleted: list[Path] = []
        for folder in self._folders:
            failed = {
                path.name: failure.reason
                for path, failure in self._failed.items()
                if path.parent == folder.path
            }
            deleted += folder.finish(failed, keep_stale=keep_stale)
        report = self.report(deleted=tuple(deleted))
        if report.accepted and not quiet:
            self._emit(Warned(text=_accepted(report.accepted, self._kind)))
        return report

    def report(self, *, deleted: tuple[Path, ...] = (), stopped: bool = False) -> CacheReport:
        """The counts as they stand."""
        kept = [states for path, states in self._states.items() if not states & {State.TO_MAKE, State.FAILED}]
        accepted = sum(State.FOREIGN in states for states in kept)
        return CacheReport(
            written=len(self._written - set(self._failed)),
            reused=len(kept) - accepted,
            accepted=accepted,
            failed=(*self._damaged, *self._failed.values()),
            deleted=deleted,
            skipped=self._skipped,
            stopped=stopped,
        )


def _accepted(count: int, kind: str) -> str:
    return (
        f"{count} {kind} caches were made by another program. They fit by name, size and caption and are "
        "used; whether picture, encoder and settings are still the same cannot be seen. Delete them to have "
        "them made anew, or give --skip_existing to accept them without this warning."
    )
