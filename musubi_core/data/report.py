"""The dataset report: every file with what it is used for, or why it is not; buckets; captions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from musubi_core.data.items import Item, Sample
from musubi_core.data.scan import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedFile:
    """clips: how many of each length; {1: 1} for a picture."""

    path: Path
    size: tuple[int, int]
    bucket: tuple[int, int]
    frames: int
    fps: float
    clips: dict[int, int]
    caption_length: int
    layers: int
    controls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRow:
    """Samples that may share a batch. per_epoch: with repeats. batches: per epoch, the last may be short."""

    size: tuple[int, int]
    frames: int
    control_sizes: tuple[tuple[int, int], ...]
    samples: int
    per_epoch: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionLengths:
    """In characters, over all items."""

    shortest: int
    median: int
    longest: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedFile:
    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """One dataset. captions is None when it has no item."""

    title: str
    source: Path
    cache_folder: Path
    kind: str  # "pictures" or "videos"
    num_repeats: int
    batch_size: int
    samples: int
    used: tuple[UsedFile, ...]
    unused: tuple[UnusedFile, ...]
    buckets: tuple[BucketRow, ...]
    captions: CaptionLengths | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report in JSON values."""
        return _plain(dataclasses.asdict(self))


def report_of(scan: Scan) -> DatasetReport:
    """What the scan of one dataset says."""
    dataset = scan.dataset
    of_item: dict[int, list[Sample]] = {}
    for sample in scan.samples:
        of_item.setdefault(id(sample.item), []).append(sample)
    return DatasetReport(
        title=dataset.title,
        source=dataset.source,
        cache_folder=dataset.cache_folder,
        kind="videos" if dataset.is_video else "pictures",
        num_repeats=dataset.num_repeats,
        batch_size=dataset.batch_size,
        samples=len(scan.samples),
        used=tuple(_used(item, of_item.get(id(item), [])) for item in scan.items),
        unused=tuple(UnusedFile(path=skip.path, reason=skip.reason) for skip in scan.skipped),
        buckets=bucket_table(scan.samples, dataset.num_repeats, dataset.batch_size),
        captions=_caption_lengths(scan.items),
        notes=scan.notes,
    )


def bucket_table(samples: Iterable[Sample], num_repeats: int, batch_size: int) -> tuple[BucketRow, ...]:
    """Samples counted by what must be equal within a batch."""
    counts = Counter(
        (each.bucket, each.frames, len(each.item.targets), each.control_sizes) for each in samples
    )
    return tuple(
        BucketRow(
            size=size,
            frames=frames + layers,
            control_sizes=controls,
            samples=number,
            per_epoch=number * num_repeats,
            batches=-(-number * num_repeats // batch_size),
        )
        for (size, frames, layers, controls), number in sorted(counts.items())
    )


def report_text(scans: Sequence[Scan], *, files: bool = True) -> str:
    """The report for people. files: also list each used file; unused ones are always listed."""
    parts = [_dataset_text(report_of(scan), files) for scan in scans]
    total = sum(len(scan.samples) * scan.dataset.num_repeats for scan in scans)
    if len(scans) > 1:
        parts.append(f"All datasets: {total} samples per epoch.")
    return "\n\n".join(parts)


def _used(item: Item, samples: Sequence[Sample]) -> UsedFile:
    return UsedFile(
        path=item.path,
        size=item.size,
        bucket=samples[0].bucket,
        frames=item.frames,
        fps=item.fps,
        clips=dict(sorted(Counter(sample.frames for sample in samples).items())),
        caption_length=len(item.caption),
        layers=len(item.targets),
        controls=len(item.controls),
    )


def _caption_lengths(items: Sequence[Item]) -> CaptionLengths | None:
    lengths = sorted(len(item.caption) for item in items)
    if not lengths:
        return None
    return CaptionLengths(
        shortest=lengths[0], median=int(median(lengths)), longest=lengths[-1], empty=lengths.count(0)
    )


def _dataset_text(report: DatasetReport, files: bool) -> str:
    total = len(report.used) + len(report.unused)
    lines = [
        f"{report.title}: {report.kind} of {report.source}",
        f"  {len(report.used)} of {total} files used, {report.samples} samples, "
        f"num_repeats {report.num_repeats}, batch_size {report.batch_size}",
        f"  caches in {report.cache_folder}",
    ]
    if report.captions:
        each = report.captions
        span = f"{each.shortest} to {each.longest} characters, median {each.median}"
        lines.append(f"  captions: {span}, {each.empty} empty")
    lines += [f"  note: {note}" for note in report.notes]
    if report.buckets:
        lines += ["  buckets:", *_table(report.buckets)]
    if files and report.used:
        lines += ["  used:", *(f"    {_used_text(file)}" for file in report.used)]
    if report.unused:
        lines += ["  not used:", *(f"    {file.path.name}: {file.reason}" for file in report.unused)]
    return "\n".join(lines)


def _table(buckets: Sequence[BucketRow]) -> list[str]:
    lines = [f"    {'size':>11} {'frames':>7} {'samples':>8} {'per epoch':>10} {'batches':>8}"]
    for row in buckets:
        line = (
            f"    {_size(row.size):>11} {row.frames:>7} {row.samples:>8} {row.per_epoch:>10} {row.batches:>8}"
        )
        if row.control_sizes:
            line += f"  controls {', '.join(_size(size) for size in row.control_sizes)}"
        lines.append(line)
    return lines


def _used_text(file: UsedFile) -> str:
    words = [f"{file.path.name}: {_size(file.size)} -> {_size(file.bucket)}"]
    if file.fps:
        clips = ", ".join(f"{number} of {frames}" for frames, number in file.clips.items())
        words.append(f"{file.frames} frames (file: {file.fps:g} fps), clips: {clips}")
    words.append(f"caption {file.caption_length} characters")
    if file.layers:
        words.append(f"{file.layers} layers")
    if file.controls:
        words.append(f"{file.controls} controls")
    return ", ".join(words)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
