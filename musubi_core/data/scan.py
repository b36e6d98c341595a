"""From a dataset to its items and samples, reading only headers, packets and captions.

Every media file ends up as an item or as a `Skipped` with the reason. Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from musubi_core.config import ConfigError, LatentShape
from musubi_core.data.buckets import bucket_of, check_resolution, control_size
from musubi_core.data.clips import SAME_RATE, FrameRate, round_targets, windows
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.data.items import Item, Sample, Skipped
from musubi_core.data.jsonl import list_jsonl
from musubi_core.data.listing import NO_CAPTION, Candidate, list_folder
from musubi_core.data.picture_file import picture_size
from musubi_core.data.video_file import video_header
from musubi_core.errors import BadFileError

TOO_SMALL = "are too small"
TOO_SHORT = "are too short"
WRONG_CONTROLS = "have a wrong number of controls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a dataset comes to for one architecture. samples: in the order of items, then of windows."""

    dataset: DatasetConfig
    shape: LatentShape
    items: tuple[Item, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examined:
    """One candidate after a look at its files."""

    key: str
    samples: tuple[Sample, ...] = ()  # all of one item
    skipped: Skipped | None = None
    variable_rate: bool = False


def scan(dataset: DatasetConfig, shape: LatentShape) -> Scan:
    """Find every item and sample of a dataset, several files at a time.

    Raises ConfigError for settings that this architecture cannot use; files that cannot be used are in
    `.skipped`.
    """
    _check_kind(dataset, shape)
    check_resolution(dataset, shape)
    targets: tuple[int, ...] = ()
    notes: list[str] = []
    if dataset.is_video:
        targets, notes = round_targets(dataset.target_frames, shape.temporal, where=dataset.title)
    with_controls = shape.max_controls != 0
    listing = (list_folder if dataset.directory else list_jsonl)(dataset, with_controls=with_controls)
    look = partial(_examine, dataset=dataset, shape=shape, targets=targets)
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        examined = list(pool.map(look, listing.candidates))
    used, stem_notes = _with_unique_stems([each for each in examined if each.samples])
    skipped = [*listing.skipped, *(each.skipped for each in examined if each.skipped)]
    notes = [*dataset.notes, *notes, *listing.notes, *stem_notes, *_notes(dataset, shape, used)]
    return Scan(
        dataset=dataset,
        shape=shape,
        items=tuple(each.samples[0].item for each in used),
        samples=tuple(sample for each in used for sample in each.samples),
        skipped=tuple(sorted(skipped, key=lambda skip: str(skip.path))),
        notes=tuple(notes),
    )


def require_items(scans: Iterable[Scan]) -> None:
    """Raise ConfigError, with the reasons counted, when a dataset has no usable item."""
    for each in scans:
        if each.items:
            continue
        dataset, found = each.dataset, len(each.skipped)
        if not found:
            kind = "videos" if dataset.is_video else "pictures"
            raise ConfigError(
                f"{dataset.title} has no {kind} at all in {dataset.source}. Add some, or mend the path."
            )
        reasons = Counter(skip.group for skip in each.skipped)
        counted = ", ".join(f"{number} {group}" for group, number in reasons.most_common())
        first = each.skipped[0]
        remedy = ""
        if NO_CAPTION in reasons and dataset.directory:
            remedy = (
                f" Expected {first.path.name} -> {first.path.stem}{dataset.caption_extension}. Add captions."
            )
        raise ConfigError(
            f"{dataset.title} has 0 usable items of {found} files in {dataset.source}: {counted}. "
            f"First: {first.path.name}: {first.reason}{remedy}"
        )


def _check_kind(dataset: DatasetConfig, shape: LatentShape) -> None:
    if dataset.is_video and not shape.temporal:
        raise ConfigError(
            f"{dataset.title} holds videos, but {shape.architecture} knows pictures only. "
            "Use image_directory."
        )


def _examine(
    candidate: Candidate, *, dataset: DatasetConfig, shape: LatentShape, targets: Sequence[int]
) -> _Examined:
    path = candidate.path
    try:
        if dataset.is_video:
            return _examine_video(candidate, dataset, shape, targets)
        return _examine_picture(candidate, dataset, shape)
    except BadFileError as error:
        reason = str(error).removeprefix(str(path)).strip()  # the path is told beside the reason
        return _Examined(key=candidate.key, skipped=Skipped(path=path, reason=reason))
    except OSError as error:  # no permission, a name too long, a lost network drive
        reason = f"cannot be read: {error.strerror}."
        return _Examined(key=candidate.key, skipped=Skipped(path=path, reason=reason))


def _examine_picture(candidate: Candidate, dataset: DatasetConfig, shape: LatentShape) -> _Examined:
    size = picture_size(candidate.path)
    for target in candidate.targets:
        picture_size(target)
    control_images = [picture_size(control) for control in candidate.controls]
    if skipped := _too_small(candidate.path, size, shape) or _wrong_controls(candidate, dataset, shape):
        return _Examined(key=candidate.key, skipped=skipped)
    item = Item(
        path=candidate.path,
        stem=candidate.path.stem,
        is_video=False,
        size=size,
        frames=1,
        fps=0.0,
        caption=candidate.caption,
        targets=candidate.targets,
        controls=candidate.controls,
    )
    bucket = bucket_of(size, dataset, shape)
    sizes = tuple(control_size(each, bucket, dataset, shape.pixel_step) for each in control_images)
    return _Examined(key=candidate.key, samples=(Sample(item=item, bucket=bucket, control_sizes=sizes),))


def _examine_video(
    candidate: Candidate, dataset: DatasetConfig, shape: LatentShape, targets: Sequence[int]
) -> _Examined:
    path = candidate.path
    header = video_header(path)
    for control in candidate.controls:
        video_header(control)
    fps = dataset.source_fps or header.fps or (shape.fps if path.is_dir() else 0.0)
    if not fps:
        raise BadFileError(f"{path} states no frame rate. Set source_fps, or re-encode it.")
    frames = FrameRate(fps, shape.fps).count(header.frames)
    found = windows(frames, dataset, targets, shape.temporal)
    skipped = _too_small(path, header.size, shape)
    if skipped is None and not found:
        reason = f"has {frames} frames at {shape.fps:g} fps; the shortest clip asked for has {min(targets)}."
        skipped = Skipped(path=path, reason=reason, group=TOO_SHORT)
    if skipped:
        return _Examined(key=candidate.key, skipped=skipped)
    item = Item(
        path=path,
        stem=path.name if path.is_dir() else path.stem,
        is_video=True,
        size=header.size,
        frames=frames,
        fps=fps,
        caption=candidate.caption,
        controls=candidate.controls,
        source_frames=header.frames,
    )
    bucket = bucket_of(header.size, dataset, shape)
    samples = tuple(
        Sample(
            item=item, bucket=bucket, start=start, frames=length, control_sizes=(bucket,) * len(item.controls)
        )
        for start, length in found
    )
    return _Examined(key=candidate.key, samples=samples, variable_rate=header.variable)


def _too_small(path: Path, size: tuple[int, int], shape: LatentShape) -> Skipped | None:
    step = shape.pixel_step
    if min(size) >= step:
        return None
    reason = f"is {size[0]}x{size[1]} pixels; at least {step}x{step} are needed."
    return Skipped(path=path, reason=reason, group=TOO_SMALL)


def _wrong_controls(candidate: Candidate, dataset: DatasetConfig, shape: LatentShape) -> Skipped | None:
    low, high = shape.min_controls, shape.max_controls
    if dataset.fp_1f_clean_indices is not None and high != 0:
        low = high = len(dataset.fp_1f_clean_indices)
    count = len(candidate.controls)
    if low <= count and (high is None or count <= high):
        return None
    expected = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    reason = f"has {count} control pictures; {shape.architecture} takes {expected} here."
    return Skipped(path=candidate.path, reason=reason, group=WRONG_CONTROLS)


def _with_unique_stems(examined: Sequence[_Examined]) -> tuple[list[_Examined], list[str]]:
    """Give every item a stem of its own, because the names of its caches begin with it.

    Compared without case: "A.png" and "a.png" would share a cache on Windows. The first keeps its name.
    """
    seen: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    result: list[_Examined] = []
    renamed: list[str] = []
    for each in examined:
        item = each.samples[0].item
        stem = item.stem
        seen[stem.casefold()] += 1
        keys[each.key] += 1
        if seen[stem.casefold()] > 1:
            text = each.key if keys[each.key] == 1 else f"{each.key}#{keys[each.key]}"
            stem = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            renamed.append(f"{item.path.name} -> {stem}")
            item = replace(item, stem=stem)
            each = replace(each, samples=tuple(replace(sample, item=item) for sample in each.samples))
        result.append(each)
    if not renamed:
        return result, []
    return result, [f"{len(renamed)} files share their name with another; caches use e.g. {renamed[0]}."]


def _notes(dataset: DatasetConfig, shape: LatentShape, used: Sequence[_Examined]) -> list[str]:
    items = [each.samples[0].item for each in used]
    notes = []
    if shape.max_controls == 0 and dataset.control_directory is not None:
        notes.append(f"{shape.architecture} uses no controls: control_directory is ignored.")
    has_rules = dataset.no_resize_control or dataset.control_resolution is not None
    if has_rules and not any(item.controls for item in items):
        notes.append("no_resize_control and control_resolution have no effect: no item has a control.")
    rates = Counter(item.fps for item in items if item.is_video and abs(item.fps / shape.fps - 1) > SAME_RATE)
    for fps, number in sorted(rates.items()):
        notes.append(
            f"{number} videos of {fps:g} fps are brought to {shape.fps:g} fps. "
            f"To take every frame as it is, set source_fps = {shape.fps:g}."
        )
    uneven = [each.samples[0].item.path.name for each in used if each.variable_rate]
    if uneven:
        notes.append(
            f"{len(uneven)} videos have a varying frame rate (first: {uneven[0]}); their average is used, "
            "so motion may run unevenly."
        )
    empty = sum(not item.caption for item in items)
    if empty:
        notes.append(f"{empty} captions are empty.")
    return notes
