"""Tensors of several files in a given order, the next ones read while the last ones are worked on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from musubi_core.files.tensors import TensorFile

PORTION = 8_000_000  # bytes read at once: handing over each small tensor by itself costs more than reading it
AHEAD = 2  # portions waiting; more costs memory and gains nothing

Read = tuple[TensorFile, str]


@contextlib.contextmanager
def read_ahead(reads: Iterable[Read]) -> Generator[Iterator[Tensor], None, None]:
    """An iterator over `file.read(name)` of each pair, in order, from one reading thread.

    At most three portions and a tensor are in memory. Nobody else may read from the files meanwhile. Errors
    of a read are raised when its turn comes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        try:
            yield _in_turn(reader, _portions(reads))
        finally:
            reader.shutdown(wait=True, cancel_futures=True)


def _portions(reads: Iterable[Read]) -> Iterator[list[Read]]:
    portion: list[Read] = []
    size = 0
    for file, name in reads:
        portion.append((file, name))
        stored = file.header.tensors[name]
        size += stored.end - stored.start
        if size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _in_turn(reader: ThreadPoolExecutor, portions: Iterator[list[Read]]) -> Iterator[Tensor]:
    waiting: deque[Future[list[Tensor]]] = deque()
    for portion in portions:
        waiting.append(reader.submit(_read, portion))
        if len(waiting) > AHEAD:
            yield from _given_away(waiting.popleft().result())
    while waiting:
        yield from _given_away(waiting.popleft().result())


def _read(portion: list[Read]) -> list[Tensor]:
    return [file.read(name) for file, name in portion]


def _given_away(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Each tensor once, kept no longer than its turn."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()
