"""Events of a job, shown on a terminal or written to a log. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from musubi_core.events import Event, FileWritten, Metrics, Note, Progress, Warned

LOG_EVERY = 10.0  # seconds between progress lines where no bar can be drawn


class Console:
    """A Listener that draws one bar per stage, with notes and warnings as lines above it.

    Without a terminal a bar becomes an occasional line. quiet: show nothing (all ranks but the first).
    """

    def __init__(
        self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._quiet = quiet
        self._clock = clock
        self._bar: Any = None  # tqdm of the current stage
        self._stage = ""
        self._logged_at = 0.0
        self._logged_done = -1
        self._numbers = ""  # latest metrics, in short
        self._seen: set[str] = set()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Metrics):
            self._numbers = short_metrics(event.values)
        elif isinstance(event, Note):
            self.line(event.text)
        elif isinstance(event, Warned):
            self._once(f"warning: {event.text}")
        elif isinstance(event, FileWritten) and "cache" not in event.what:  # caches come by the thousand
            self.line(f"{event.what}: {event.path}")

    def line(self, text: str) -> None:
        """One line of text that does not break the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.refresh()

    def _once(self, text: str) -> None:
        """A warning that repeats itself says nothing new."""
        if text not in self._seen:
            self._seen.add(text)
            self.line(text)

    def _progress(self, event: Progress) -> None:
        if event.stage != self._stage:
            self._close_bar()
            self._stage = event.stage
            self._logged_at = self._clock()
            self._logged_done = -1
            self._numbers = ""
        if self._stream.isatty():
            self._draw(event)
        else:
            self._log(event)

    def _draw(self, event: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=event.stage, total=event.total, initial=event.done, file=self._stream, dynamic_ncols=True
            )
        self._bar.total = event.total
        self._bar.set_postfix_str(self._numbers or event.text, refresh=False)
        self._bar.update(event.done - self._bar.n)

    def _log(self, event: Progress) -> None:
        finished = event.total is not None and event.done >= event.total
        due = self._clock() - self._logged_at >= LOG_EVERY
        if event.done == self._logged_done or not (finished or due):
            return
        self._logged_at, self._logged_done = self._clock(), event.done
        self.line(progress_line(event, self._numbers))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def progress_line(event: Progress, numbers: str) -> str:
    """A bar in words, e.g. train: 120 of 1600 (7.5 %), loss 0.0831, lr 0.0001."""
    count = f"{event.done}"
    if event.total:
        count += f" of {event.total} ({100 * event.done / event.total:.3g} %)"
    tail = numbers or event.text
    return f"{event.stage}: {count}, {tail}" if tail else f"{event.stage}: {count}"


def short_metrics(values: Mapping[str, float]) -> str:
    """The one or two numbers that belong beside a bar: the averaged loss and the learning rate."""
    shown = {"loss/average": "loss", "lr/unet": "lr"}
    if "loss/average" not in values:
        shown = {"loss/current": "loss", "lr/unet": "lr"}
    return ", ".join(f"{short} {values[name]:.3g}" for name, short in shown.items() if name in values)
