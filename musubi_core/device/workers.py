"""Threads that share out work on small tensors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def one_core_workers(count: int) -> Generator[ThreadPoolExecutor, None, None]:
    """`count` threads, each of whose torch operations runs on one core; other threads keep their number.

    torch otherwise splits every operation over the cores and waits for the slowest: with thousands of
    small ones on a busy machine, a load took up to 20 times as long. On an exception, what has not begun is
    dropped.
    """
    before = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call of a thread sets it to the number of the process
        torch.set_num_threads(1)  # of this thread, and of those that begin later
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="musubi-core", initializer=begin)
    try:
        for _ in range(count):  # a thread is started for each piece of work while none is free
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(before)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
