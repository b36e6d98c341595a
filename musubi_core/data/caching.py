"""The engines of caching: media are decoded ahead, encoded in groups, and written behind.

Three things happen at once. Threads decode the next items into a bounded store. The caller's thread encodes
groups of equal shape. One more thread checks and writes what was encoded. The encoder waits for a disk only
if the disk is slower than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from musubi_core.config import LatentShape
from musubi_core.data.ahead import ReadAhead
from musubi_core.data.cache_plan import PlannedLatent, PlannedText
from musubi_core.data.cache_writes import Outcome, Tensors, WriteBehind, write_latent, write_text
from musubi_core.data.pixels import LoadedSample
from musubi_core.errors import MusubiError
from musubi_core.events import ShouldStop

DECODED_BYTES = 512 * 2**20  # decoded pixels that may wait for the encoder, and as many in unfinished groups

ItemWork: TypeAlias = Sequence[PlannedLatent]  # all that is wanted of one media file
Ready: TypeAlias = tuple[PlannedLatent, LoadedSample]
LoadItem: TypeAlias = Callable[[ItemWork], Generator[Ready, None, None]]
EncodeGroup: TypeAlias = Callable[[Sequence[Ready]], Sequence[Tensors]]
EncodeCaptions: TypeAlias = Callable[[Sequence[str]], Sequence[Tensors]]
Input = TypeVar("Input")


def make_latents(
    plan: Sequence[PlannedLatent],
    load: LoadItem,
    encode: EncodeGroup,
    *,
    shape: LatentShape,
    batch_size: int,
    workers: int,
    should_stop: ShouldStop,
) -> Generator[Outcome, None, None]:
    """Make the planned files; yields an outcome for each that was written or has failed.

    load: the pixels of one item's samples, one after another; runs in `workers` threads. encode: a group of
    at most `batch_size` samples of equal shape; runs in the caller's thread. A damaged file fails alone, and
    so does an item of which the encoder makes NaN. After a stop, what was encoded is still written.
    """
    groups = _Groups(batch_size)
    with (
        ReadAhead(_by_item(plan), load, workers=workers, limit=DECODED_BYTES, cost=_pixel_bytes) as ahead,
        WriteBehind() as writer,
    ):
        for group in _grouped(ahead, groups):
            if should_stop():
                break
            if isinstance(group, Outcome):
                yield group
                continue
            for (planned, _), made in _each(group, encode):
                if isinstance(made, str):
                    yield Outcome(path=planned.path, source=planned.sample.item.path, error=made)
                else:
                    yield from writer.put(partial(write_latent, planned, shape, made))
        yield from writer.rest()


def make_texts(
    plan: Sequence[PlannedText],
    encode: EncodeCaptions,
    *,
    architecture: str,
    batch_size: int,
    should_stop: ShouldStop,
) -> Generator[Outcome, None, None]:
    """Make one part of text files; yields an outcome for each. Equal captions are encoded once."""
    by_caption: dict[str, list[PlannedText]] = {}
    for planned in plan:
        by_caption.setdefault(planned.item.caption, []).append(planned)
    captions = list(by_caption)
    with WriteBehind() as writer:
        for first in range(0, len(captions), batch_size):
            if should_stop():
                break
            some = captions[first : first + batch_size]
            for caption, made in _each(some, encode):
                for planned in by_caption[caption]:
                    if isinstance(made, str):
                        yield Outcome(path=planned.path, source=planned.item.path, error=made)
                    else:
                        yield from writer.put(partial(write_text, planned, architecture, made))
        yield from writer.rest()


def _by_item(plan: Sequence[PlannedLatent]) -> list[ItemWork]:
    """The samples of each media file together, files of equal size side by side, so that groups fill up."""
    items: dict[str, list[PlannedLatent]] = {}
    for planned in plan:
        items.setdefault(planned.sample.item.stem, []).append(planned)
    return sorted(items.values(), key=lambda work: (work[0].sample.bucket, work[0].sample.frames))


def _grouped(
    ahead: ReadAhead[ItemWork, Ready], groups: _Groups
) -> Generator[Sequence[Ready] | Outcome, None, None]:
    """Groups as they fill up, the unfinished ones at the end, and an outcome for each sample that failed."""
    current: ItemWork = ()
    loaded: set[str] = set()
    for work, ready in ahead:
        if work is not current:
            current, loaded = work, set()
        if isinstance(ready, MusubiError):
            for planned in work:
                if planned.path.name not in loaded:
                    yield Outcome(path=planned.path, source=planned.sample.item.path, error=str(ready))
            continue
        loaded.add(ready[0].path.name)
        yield from groups.add(ready)
    yield from groups.rest()


class _Groups:
    """Decoded samples, gathered by shape until `size` of them can be encoded together."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open: dict[tuple[tuple[int, ...], ...], list[Ready]] = {}
        self._bytes = 0

    def add(self, ready: Ready) -> Iterator[Sequence[Ready]]:
        """Gives the group that is full now, and the largest unfinished ones when too much waits."""
        key = tuple(pixels.shape for pixels in (ready[1].frames, *ready[1].controls))
        group = self._open.setdefault(key, [])
        group.append(ready)
        self._bytes += _pixel_bytes(ready)
        if len(group) == self._size:
            yield self._take(key)
        while self._bytes > DECODED_BYTES:
            yield self._take(max(self._open, key=lambda one: sum(map(_pixel_bytes, self._open[one]))))

    def rest(self) -> Iterator[Sequence[Ready]]:
        while self._open:
            yield self._take(next(iter(self._open)))

    def _take(self, key: tuple[tuple[int, ...], ...]) -> Sequence[Ready]:
        group = self._open.pop(key)
        self._bytes -= sum(map(_pixel_bytes, group))
        return group


def _pixel_bytes(ready: Ready) -> int:
    loaded = ready[1]
    return loaded.frames.nbytes + sum(control.nbytes for control in loaded.controls)


def _each(
    group: Sequence[Input], encode: Callable[[Sequence[Input]], Sequence[Tensors]]
) -> Iterator[tuple[Input, Tensors | str]]:
    """Every input with its tensors on the CPU, or with the reason why it has none.

    When the encoder refuses a group or runs out of memory, each member is tried alone, so that one bad or
    large item fails by itself.
    """
    reason = ""
    try:
        made = [{name: tensor.detach().cpu() for name, tensor in one.items()} for one in encode(group)]
    except MusubiError as error:
        reason = str(error)
    except torch.OutOfMemoryError:
        reason = "out of memory; use the encoder's options for tiling or less precision, or smaller samples"
    if not reason:
        yield from zip(group, made, strict=True)
    elif len(group) == 1:
        yield group[0], reason
    else:
        for one in group:
            yield from _each([one], encode)
