"""Tensors of several files in a given order, the next one read while the last one is worked on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from musubi_core.files.tensors import TensorFile

AHEAD = 2  # tensors waiting; more costs memory and gains nothing


@contextlib.contextmanager
def read_ahead(reads: Iterable[tuple[TensorFile, str]]) -> Generator[Iterator[Tensor], None, None]:
    """An iterator over `file.read(name)` of each pair, in order, from one reading thread.

    Nobody else may read from the files meanwhile. Errors of a read are raised when its turn comes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        try:
            yield _in_turn(reader, iter(reads))
        finally:
            reader.shutdown(wait=True, cancel_futures=True)


def _in_turn(reader: ThreadPoolExecutor, reads: Iterator[tuple[TensorFile, str]]) -> Iterator[Tensor]:
    waiting: deque[Future[Tensor]] = deque()
    for file, name in reads:
        waiting.append(reader.submit(file.read, name))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
