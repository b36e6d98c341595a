"""Threads on one core each, in a process that keeps its own number of them."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from musubi_core.device.workers import one_core_workers

NUMBERS = """
import threading, torch
from musubi_core.device.workers import one_core_workers
torch.set_num_threads(3)
found = []
with one_core_workers(2) as pool:
    found += pool.map(lambda number: (torch.ones(99999).sum(), torch.get_num_threads())[1], range(8))
    found.append(torch.get_num_threads())
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
found.append(torch.get_num_threads())
print(found)
"""


def test_each_worker_has_one_core_and_everyone_else_keeps_theirs():
    """In a process of its own: the number of threads belongs to the process."""
    done = subprocess.run([sys.executable, "-c", NUMBERS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([1] * 8 + [3, 3, 3])


def test_the_work_is_shared_out():
    meeting = threading.Barrier(3)
    with one_core_workers(3) as pool:
        assert list(pool.map(lambda number: meeting.wait(timeout=20) >= 0, range(3))) == [True] * 3


def test_after_an_error_nothing_new_begins():
    begun = []
    hold = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first one fails")
        hold.wait(timeout=0.2)

    with pytest.raises(ValueError, match="the first one fails"), one_core_workers(1) as pool:
        list(pool.map(work, range(100)))
    assert len(begun) < 5
    assert not any(thread.name.startswith("musubi-core") for thread in threading.enumerate())
