"""Reading ahead keeps the order, bounds memory, and ends its threads."""

from __future__ import annotations

import random
import threading
import time

import pytest

from musubi_core.data.ahead import ReadAhead
from musubi_core.errors import BadFileError


def slow(job: int):
    for part in range(job % 3):
        time.sleep(random.Random(job * 10 + part).random() / 200)
        yield job, part
    if job % 5 == 4:
        raise BadFileError(f"job {job} is bad")


def flat(results):
    return [(job, result if isinstance(result, tuple) else str(result)) for job, result in results]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("limit", [0, 1, 4, 1000])
def test_threads_give_what_a_plain_loop_gives(workers, limit):
    with (
        ReadAhead(range(20), slow, workers=0, limit=0) as plain,
        ReadAhead(range(20), slow, workers=workers, limit=limit) as threaded,
    ):
        assert flat(threaded) == flat(plain)


def test_finished_results_never_cost_more_than_the_limit_and_one():
    waiting, most, lock = 0, 0, threading.Lock()

    def read(job: int):
        nonlocal waiting, most
        for _ in range(10):
            with lock:
                waiting += 1
                most = max(most, waiting)
            yield 100

    with ReadAhead(range(6), read, workers=3, limit=400, cost=lambda result: result) as ahead:
        for _ in ahead:
            time.sleep(0.002)
            with lock:
                waiting -= 1
    assert most <= 400 / 100 + 1 + 3 + 1  # the limit, the one whose turn it is, one per worker, one taken


def test_leaving_early_stops_workers_that_wait_and_closes_what_they_read():
    closed = []

    def read(job: int):
        try:
            while True:
                yield job
        finally:
            closed.append(job)

    before = threading.active_count()
    with ReadAhead(range(4), read, workers=4, limit=2) as ahead:
        next(iter(ahead))
    assert threading.active_count() == before
    assert sorted(closed) == [0, 1, 2, 3]


def test_a_slip_of_the_program_is_raised_and_not_taken_for_a_bad_file():
    def read(job: int):
        yield job
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), ReadAhead([1], read, workers=1, limit=1) as ahead:
        list(ahead)
