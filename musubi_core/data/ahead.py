"""Reading ahead with threads: results in the order of the jobs, memory bounded, threads gone at the end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Generic, TypeVar

from musubi_core.errors import MusubiError

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Closed(Exception):
    """The consumer has gone; a worker that waits for room gives up."""


class ReadAhead(Generic[Job, Result]):
    """Runs `read(job)`, which yields any number of results, for many jobs in `workers` threads.

    Iterating gives (job, result) in the order of the jobs, whatever thread was faster. A MusubiError of a
    job takes the place of its remaining results; any other exception is raised to the consumer.

    limit, cost: finished results that nobody has taken yet cost at most `limit` together, except that the
    job whose turn it is may always have one ready, so one large result cannot block the queue. workers = 0
    reads in the consumer's own thread. Use as a context manager: leaving it stops and joins the threads.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        read: Callable[[Job], Generator[Result, None, None]],
        *,
        workers: int,
        limit: float,
        cost: Callable[[Result], float] = lambda result: 1,
    ) -> None:
        self._jobs = jobs
        self._read = read
        self._limit = limit
        self._cost = cost
        self._changed = threading.Condition()
        self._next = 0  # the next job that no worker has taken
        self._turn = 0  # the job whose results the consumer takes now
        self._held = 0.0
        self._ready: dict[int, deque[Result]] = {}
        self._ended: dict[int, BaseException | None] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"read-ahead-{number}", daemon=True)
            for number in range(min(workers, len(jobs)))
        ]

    def __enter__(self) -> ReadAhead[Job, Result]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._ready.clear()
        self._ended.clear()

    def __iter__(self) -> Iterator[tuple[Job, Result | MusubiError]]:
        for index, job in enumerate(self._jobs):
            try:
                with closing(self._taken(index) if self._threads else self._read(job)) as results:
                    for result in results:
                        yield job, result
            except MusubiError as error:
                yield job, error

    def _taken(self, index: int) -> Generator[Result, None, None]:
        """The results of one job, as workers deliver them."""
        while True:
            with self._changed:
                if self._turn != index:
                    self._turn = index
                    self._changed.notify_all()
                while not self._ready.get(index) and index not in self._ended:
                    self._changed.wait()
                if not self._ready.get(index):
                    break
                result = self._ready[index].popleft()
                self._held -= self._cost(result)
                self._changed.notify_all()
            yield result
        self._ready.pop(index, None)
        error = self._ended.pop(index)
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._closed or self._next >= len(self._jobs):
                    return
                index = self._next
                self._next += 1
            error: BaseException | None = None
            try:
                with closing(self._read(self._jobs[index])) as results:
                    for result in results:
                        self._put(index, result)
            except _Closed:
                return
            except BaseException as problem:  # noqa: BLE001 - raised again to the consumer
                error = problem
            with self._changed:
                self._ended[index] = error
                self._changed.notify_all()

    def _put(self, index: int, result: Result) -> None:
        cost = self._cost(result)
        with self._changed:
            while not self._closed:
                first = index == self._turn and not self._ready.get(index)
                if first or self._held + cost <= self._limit:
                    break
                self._changed.wait()
            if self._closed:
                raise _Closed
            self._held += cost
            self._ready.setdefault(index, deque()).append(result)
            self._changed.notify_all()
