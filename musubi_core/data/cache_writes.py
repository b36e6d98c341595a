"""Writing encoded items, in a thread behind the encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from torch import Tensor

from musubi_core.config import LatentShape
from musubi_core.data.cache_file import (
    FORMAT_VERSION,
    latent_metadata,
    not_finite,
    our_metadata,
    read_cache,
    text_metadata,
    write_cache,
)
from musubi_core.data.cache_plan import PlannedLatent, PlannedText
from musubi_core.data.manifest import LATENTS
from musubi_core.files.header import TensorFileError

Tensors: TypeAlias = Mapping[str, Tensor]  # canonical names, one item, no batch axis

WAITING_WRITES = 16  # encoded items that may wait for the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A cache file that was written, or why it was not."""

    path: Path
    source: Path
    error: str = ""


def write_latent(planned: PlannedLatent, shape: LatentShape, tensors: Tensors) -> Outcome:
    """Write one latent file, unless the VAE made NaN or infinity."""
    error = ""
    if bad := not_finite(tensors):
        error = f"the VAE made NaN or infinity in {bad}; try another --vae_dtype, float32 for example"
    else:
        ours = our_metadata(LATENTS, planned.mark, planned.facts)
        write_cache(planned.path, tensors, latent_metadata(shape, planned.sample) | ours)
    return Outcome(path=planned.path, source=planned.sample.item.path, error=error)


def write_text(planned: PlannedText, architecture: str, tensors: Tensors) -> Outcome:
    """Add one part to a text file, unless the encoder made NaN or infinity.

    The other parts of the file are kept, but not those that were made from another caption.
    """
    error = ""
    if bad := not_finite(tensors):
        error = f"the text encoder {planned.part} made NaN or infinity in {bad}; try another dtype for it"
    else:
        metadata = text_metadata(architecture, planned.item.caption)
        old_tensors, old_metadata = _parts_of_same_caption(planned.path, metadata)
        ours = our_metadata(planned.part, planned.mark, planned.facts)
        write_cache(planned.path, {**old_tensors, **tensors}, old_metadata | metadata | ours)
    return Outcome(path=planned.path, source=planned.item.path, error=error)


def _parts_of_same_caption(path: Path, wanted: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of the file that is there, if any, was made from the same caption, and is whole."""
    if not path.exists():
        return {}, {}
    try:
        header, tensors = read_cache(path)
    except TensorFileError:
        return {}, {}
    found = {"format_version": FORMAT_VERSION, **header.metadata}
    if any(found.get(name) != wanted[name] for name in ("architecture", "caption1")):
        return {}, {}
    return tensors, dict(header.metadata)


class WriteBehind:
    """One thread that writes, with a bounded number of items waiting for it.

    Outcomes come back in the order of `put`. Leaving the context waits for everything that was put, also
    after an error, so nothing that was encoded is lost. An error of the disk is raised by the next call.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._waiting: deque[Future[Outcome]] = deque()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)

    def put(self, write: Callable[[], Outcome]) -> Iterator[Outcome]:
        """Queue one write; gives the outcomes that are ready, waiting for one only when the queue is full."""
        self._waiting.append(self._pool.submit(write))
        return self._ready(WAITING_WRITES)

    def rest(self) -> Iterator[Outcome]:
        """Wait for all writes; gives their outcomes."""
        return self._ready(0)

    def _ready(self, may_wait: int) -> Iterator[Outcome]:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > may_wait):
            yield self._waiting.popleft().result()
