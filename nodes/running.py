"""Jobs that run, or ran, in this server: what they told, and what was asked of them.

A node wraps its work in one:

    with running.job(unique_id, "my lora", prompt_id=prompt_id, commands=("save", "stop")) as job:
        result = train(config, job.emit, job.should_stop, requests=job.requests)
        job.raise_if_cancelled()
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

from musubi_core.errors import MusubiError
from musubi_core.events import Event, FileWritten, Metrics, Preview, Progress, Warned
from musubi_core.training.requests import Requests

from .comfy_link import ComfyLink, Link
from .job_history import Curves, Pace
from .job_pictures import Sample, small_image, thinned, write_sample

Command: TypeAlias = Literal["save", "sample", "stop"]
State: TypeAlias = Literal["running", "finished", "stopped", "cancelled", "failed"]

COMMANDS: tuple[Command, ...] = ("save", "sample", "stop")
UPDATE = "musubi.job"  # the one event that pages listen to
EVERY = 0.25  # seconds between two updates
KEPT_JOBS = 12  # that are over; running ones stay in any case
KEPT_LINES = 100  # notes and warnings, and files, of one job
LINE = 1000  # characters
NODE_PREVIEW_SIDE = 512  # pixels of the picture on the node


class Job:
    """One piece of work of one node. Events come in from the job's thread, questions from the server's."""

    def __init__(self, node: str, name: str, prompt: str, commands: Sequence[Command], link: Link) -> None:
        self.id = uuid.uuid4().hex
        self.node, self.name, self.prompt, self.commands = node, name, prompt, tuple(commands)
        self.requests = Requests()
        self.state: State = "running"
        self.message = ""
        self.started, self.ended = time.time(), 0.0
        self.samples: list[Sample] = []
        self._link = link
        self._lock = threading.RLock()
        self._stage: Progress | None = None
        self._pace, self._curves = Pace(), Curves()
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._files: deque[dict[str, str]] = deque(maxlen=KEPT_LINES)
        self._stop = False
        self._pictures = 0
        self._bar_shown, self._bar_picture = 0.0, None
        self._news: dict[str, list[Any]] = {}
        self._updates, self._sent, self._waiting = 0, 0.0, False

    def begin(self) -> None:
        """Tell the pages that there is a new job: their first update of it."""
        self._update(at_once=True)

    def emit(self, event: Event) -> None:
        """The Listener of the job. Never raises on Cancel: that is for `should_stop` to tell."""
        if isinstance(event, Progress):
            with self._lock:
                self._stage = event
                self._pace.mark(event.stage, event.done)
            self._show_bar()
        elif isinstance(event, Metrics):
            with self._lock:
                self._tell("points", [event.step, self._curves.add(event.step, event.values)])
        elif isinstance(event, Preview):
            self._add_sample(event)
        elif isinstance(event, FileWritten):
            file = {"what": event.what, "path": self._link.shown(event.path)}
            with self._lock:
                self._files.append(file)
                self._tell("files", file)
        else:
            self.line("warning" if isinstance(event, Warned) else "note", event.text)
        self._update()

    def should_stop(self) -> bool:
        """True after "stop and keep", and after ComfyUI's Cancel."""
        return self._stop or self._link.cancelled()

    @property
    def stopped_early(self) -> bool:
        """Whether "stop and keep" was pressed."""
        return self._stop

    def raise_if_cancelled(self) -> None:
        """After the work: what was kept is safe, now ComfyUI may hear of the Cancel."""
        self._link.raise_if_cancelled()

    def ask(self, command: Command) -> bool:
        """A command from a page. False when the job is over or does not know this command."""
        with self._lock:
            if self.state != "running" or command not in self.commands:
                return False
            if command == "stop":
                self._stop = True
            else:
                self.requests.ask(command)
        self._update(at_once=True)
        return True

    def line(self, kind: Literal["note", "warning", "error"], text: str) -> None:
        """One line for the list of messages."""
        with self._lock:
            self._lines.append({"kind": kind, "text": text[:LINE], "time": time.time()})
            self._tell("lines", self._lines[-1])

    def end(self, state: State, message: str = "") -> None:
        """The job is over."""
        with self._lock:
            self.state, self.message, self.ended = state, message[:LINE], time.time()
        self._update(at_once=True)

    def forget(self) -> None:
        """The job makes room for others: its pictures are deleted."""
        with self._lock:
            samples, self.samples = self.samples, []
        for sample in samples:
            sample.delete()

    def summary(self) -> dict[str, Any]:
        """What the page needs to know about now."""
        with self._lock:
            stage = self._stage
            return {
                "id": self.id,
                "node": self.node,
                "prompt_id": self.prompt,
                "name": self.name,
                "state": self.state,
                "message": self.message,
                "started": self.started,
                "ended": self.ended,
                "now": time.time(),
                "commands": list(self.commands),
                "asked": [*sorted(self.requests.waiting()), *(["stop"] if self._stop else [])],
                "update": self._updates,
                "stage": None
                if stage is None
                else {
                    "name": stage.stage,
                    "done": stage.done,
                    "total": stage.total,
                    "text": stage.text[:LINE],
                    "pace": self._pace.seconds(),
                },
                "latest": dict(self._curves.latest),
            }

    def whole(self) -> dict[str, Any]:
        """The summary and all that was kept, for a page that has just been opened.

        What was not told yet is told first, so that no later update repeats what is in here.
        """
        with self._lock:
            if self._news:
                self._update(at_once=True)
            return {
                **self.summary(),
                "curves": self._curves.rows(),
                "samples": [sample.record() for sample in self.samples],
                "lines": list(self._lines),
                "files": list(self._files),
            }

    def sample(self, number: int) -> Sample | None:
        """A sample that is kept, by its number."""
        with self._lock:
            return next((one for one in self.samples if one.number == number), None)

    def _add_sample(self, preview: Preview) -> None:
        folder = self._link.temp_folder() / "musubi" / self.id
        try:  # not under the lock: a clip takes seconds, and the server's thread must not wait for it
            sample = write_sample(preview, self._pictures, folder)
        except MusubiError as error:  # a full disk must not end a training over a thumbnail
            self.line("warning", f"A sample of step {preview.step} cannot be shown: {error}")
            return
        self._pictures += 1
        self._bar_picture = small_image(preview.frames[len(preview.frames) // 2], NODE_PREVIEW_SIDE)
        with self._lock:
            self.samples, dropped = thinned([*self.samples, sample])
            self._tell("samples", sample.record())
        for one in dropped:
            one.delete()
        self._show_bar()

    def _show_bar(self) -> None:
        """The bar on the node, and the newest picture there once."""
        stage, picture = self._stage, self._bar_picture
        if stage is None or not stage.total:
            return
        if picture is None and stage.done < stage.total and time.monotonic() < self._bar_shown + EVERY:
            return
        self._bar_shown, self._bar_picture = time.monotonic(), None
        self._link.progress(self.node, self.prompt, stage.done, stage.total, picture)

    def _tell(self, what: str, data: Any) -> None:
        """Part of the next update."""
        self._news.setdefault(what, []).append(data)

    def _update(self, *, at_once: bool = False) -> None:
        """Tell the pages, a few times per second at most; the rest is told a little later."""
        with self._lock:
            pause = self._sent + EVERY - time.monotonic()
            if pause > 0 and not at_once:
                if not self._waiting:
                    self._waiting = True
                    self._link.later(pause, lambda: self._update(at_once=True))
                return
            self._sent, self._waiting = time.monotonic(), False
            self._updates += 1
            news, self._news = self._news, {}
            self._link.send(UPDATE, {"job": self.summary(), **news})


_jobs: dict[str, Job] = {}
_jobs_lock = threading.Lock()


@contextlib.contextmanager
def job(
    unique_id: str,
    name: str,
    *,
    prompt_id: str = "",
    commands: Sequence[Command] = (),
    link: Link | None = None,
) -> Iterator[Job]:
    """Work that pages can watch and command.

    unique_id: of the node. name: for people. commands: those that the work obeys; "save" and "sample" through
    `job.requests`, "stop" through `job.should_stop`. An exception leaves as it came.
    """
    link = link or ComfyLink()
    one = Job(str(unique_id), name, prompt_id, commands, link)
    _keep(one)
    one.begin()
    try:
        yield one
    except BaseException as error:
        if link.is_cancel(error):
            one.end("cancelled")
        else:
            own = isinstance(error, MusubiError)
            one.end("failed", str(error) if own else f"{type(error).__name__}: {error}")
        raise
    one.end("stopped" if one.stopped_early else "finished")


def jobs() -> list[Job]:
    """All jobs that are known, the newest first."""
    with _jobs_lock:
        return list(reversed(_jobs.values()))


def find(job_id: str) -> Job | None:
    """A job by its id."""
    with _jobs_lock:
        return _jobs.get(job_id)


def _keep(new: Job) -> None:
    with _jobs_lock:
        over = [one for one in _jobs.values() if one.state != "running"]
        leaving = over[: max(0, len(over) + 1 - KEPT_JOBS)]
        for one in leaving:
            del _jobs[one.id]
        _jobs[new.id] = new
    for one in leaving:
        one.forget()
