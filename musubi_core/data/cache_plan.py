"""What a caching job has to do: for every file of the plan, is it there and does it still fit?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from musubi_core.config import LatentShape
from musubi_core.data.cache_file import VARLEN, CacheHeader, read_cache_header
from musubi_core.data.items import Item, Sample
from musubi_core.data.manifest import LATENTS, TEXT, Entry
from musubi_core.data.training_set import check_architecture, expected_latent, latent_grid
from musubi_core.files.header import TensorFileError


class State(Enum):
    """FRESH: ours, nothing changed. FOREIGN: made by musubi-tuner and fits as far as can be seen.

    FAILED: the media or the cache file is such that nothing can be made; the reason stands beside it.
    """

    FRESH = "fresh"
    FOREIGN = "foreign"
    TO_MAKE = "to make"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLatent:
    """One latent file: what goes in, where it goes, and the fingerprint that it carries.

    more_frames: frames of the latents beyond those of the sample itself, its further targets for example.
    """

    sample: Sample
    path: Path
    mark: str
    facts: Mapping[str, Any]
    more_frames: int = 0

    def entry(self, *, failed: str = "", foreign: bool = False) -> Entry:
        item = self.sample.item
        return Entry(
            stem=item.stem,
            source=str(item.path),
            is_video=item.is_video,
            bucket=self.sample.bucket,
            start=self.sample.start,
            frames=self.sample.frames,
            targets=self.more_frames,
            fingerprints={} if foreign else {LATENTS: self.mark},
            failed=failed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedText:
    """The part of one text file that one text encoder makes."""

    item: Item
    path: Path
    part: str  # the name of the pass
    tensors: tuple[str, ...]
    mark: str
    facts: Mapping[str, Any]


def latent_state(planned: PlannedLatent, shape: LatentShape, needed: Sequence[str]) -> State:
    """Whether the latents on disk may be used as they are. needed: canonical tensors of a latent file.

    Raises BadFileError when the file there is no cache or one of another architecture: it is not ours to
    overwrite.
    """
    header = _header(planned.path, shape.architecture, LATENTS)
    if header is None:
        return State.TO_MAKE
    if header.ours:
        return State.FRESH if header.fingerprint(LATENTS) == planned.mark else State.TO_MAKE
    if any(name not in header.tensors for name in needed):
        return State.TO_MAKE
    found = header.tensors["latents"].shape
    fits = found[0] == shape.channels and latent_grid(found) == expected_latent(planned.entry(), shape)
    return State.FOREIGN if fits else State.TO_MAKE


def text_state(planned: PlannedText, architecture: str) -> State:
    """Whether this part of the text file on disk may be used as it is. Raises BadFileError as above.

    musubi-tuner's files tell the caption they were made from, so a changed caption is seen there too.
    """
    header = _header(planned.path, architecture, TEXT)
    if header is None:
        return State.TO_MAKE
    mark = header.fingerprint(planned.part)
    if mark:
        return State.FRESH if mark == planned.mark else State.TO_MAKE
    has = {name.removeprefix(VARLEN) for name in header.tensors}
    complete = all(name.removeprefix(VARLEN) in has for name in planned.tensors)
    same = header.metadata.get("caption1") == planned.item.caption
    return State.FOREIGN if complete and same else State.TO_MAKE


def _header(path: Path, architecture: str, kind: str) -> CacheHeader | None:
    """None when there is no file, or one that was cut off while it was written."""
    if not path.exists():
        return None
    try:
        header = read_cache_header(path)
    except TensorFileError:
        return None
    check_architecture(header, architecture, kind)
    return header
