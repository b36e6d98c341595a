"""The cached items that a run trains on, and those it holds out for validation.

The source is the manifest that caching wrote, checked against the dataset file, the headers on disk and the
architecture; no media file is touched. A cache folder without a manifest was made by musubi-tuner: there the
file names tell (see `foreign_caches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from musubi_core.config import LatentShape
from musubi_core.data.cache_file import VARLEN, CacheHeader, read_cache_header
from musubi_core.data.dataset import DatasetConfig
from musubi_core.data.foreign_caches import find_foreign, other_architectures
from musubi_core.data.items import text_name
from musubi_core.data.manifest import (
    LATENTS,
    REBUILD,
    TEXT,
    Entry,
    Manifest,
    changed_settings,
    dataset_settings,
    manifest_path,
    read_manifest,
)
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Listener, Warned, ignore

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...], str], ...]  # (canonical name, shape, dtype), sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedItem:
    """One latent (a picture or a window of a clip) with the text outputs of its media file."""

    stem: str  # all windows of a clip have the same
    source: str  # the media file, or the latent file when caches of musubi-tuner do not tell
    latents: Path
    text: Path
    shapes: Shapes  # tensors that are stacked into a batch; items of one batch have equal shapes
    lists: tuple[str, ...] = ()  # tensors of varying length; batches hold them as lists


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedDataset:
    """The cached items of one `[[datasets]]` table."""

    config: DatasetConfig
    items: tuple[CachedItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """All cached items of a run. An item's index counts through all datasets in order."""

    datasets: tuple[CachedDataset, ...]

    @property
    def items(self) -> tuple[CachedItem, ...]:
        return tuple(item for dataset in self.datasets for item in dataset.items)

    def __len__(self) -> int:
        return sum(len(dataset.items) for dataset in self.datasets)

    @property
    def samples_per_epoch(self) -> int:
        """Items with their repeats (`ss_num_train_items`)."""
        return sum(len(dataset.items) * dataset.config.num_repeats for dataset in self.datasets)

    def summary(self) -> list[dict[str, Any]]:
        """For metadata and reports, per dataset: its settings, number of items, and items per latent size."""
        return [_summary(dataset) for dataset in self.datasets]


def open_training_set(
    datasets: Sequence[DatasetConfig], shape: LatentShape, required: Sequence[str], emit: Listener = ignore
) -> TrainingSet:
    """Everything cached for these datasets. Reads headers only.

    required: canonical tensors without which an item cannot be trained on. Items that caching could not make,
    or that have no text, are warned about by name and left out.
    Raises ConfigError: settings changed since caching, caching unfinished, nothing to train on. BadFileError:
    a cache is damaged, of another architecture, or lacks a required tensor.
    """
    found = tuple(
        CachedDataset(config=dataset, items=_items_of(dataset, shape, required, emit)) for dataset in datasets
    )
    return TrainingSet(datasets=found)


def split_validation(whole: TrainingSet, fraction: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
    """(training, validation). Whole media files are held out, never single windows of a clip.

    A file is held out when the hash of its name and the seed falls below `fraction`, so adding files moves no
    other file. With fraction > 0 and at least two files, each side gets one at least.
    """
    stems = sorted({(number, item.stem) for number, set_ in enumerate(whole.datasets) for item in set_.items})
    place = {stem: _place(f"validation:{seed}:{stem[1]}") for stem in stems}
    ranked = sorted(stems, key=lambda stem: (place[stem], stem))
    held = [stem for stem in ranked if place[stem] < fraction]
    if fraction > 0 and not held:
        held = ranked[:1]
    held = held[: max(len(stems) - 1, 0)]
    return _part(whole, set(stems) - set(held)), _part(whole, set(held))


def _place(text: str) -> float:
    """A number in [0, 1) that looks random and depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:7], "big") / 2**56


def _part(whole: TrainingSet, stems: set[tuple[int, str]]) -> TrainingSet:
    parts = (
        replace(set_, items=tuple(item for item in set_.items if (number, item.stem) in stems))
        for number, set_ in enumerate(whole.datasets)
    )
    return TrainingSet(datasets=tuple(parts))


def _items_of(
    dataset: DatasetConfig, shape: LatentShape, required: Sequence[str], emit: Listener
) -> tuple[CachedItem, ...]:
    folder = dataset.cache_folder
    latents = _manifest_for(dataset, shape, LATENTS)
    text = _manifest_for(dataset, shape, TEXT)
    if latents is None:
        entries = find_foreign(folder, shape.short)
        if entries:
            emit(
                Warned(
                    text=f"{dataset.title}: the {len(entries)} latent caches in {folder} were made by "
                    "another program, so whether they fit the pictures and captions cannot be checked. "
                    f"Run {REBUILD[LATENTS]} to have them checked."
                )
            )
    else:
        entries = {name: entry for name, entry in latents.entries.items() if entry.used}
    items = []
    left_out: list[str] = []
    for name, entry in sorted(entries.items()):
        text_path = folder / text_name(entry.stem, shape.short)
        text_entry = text.entries.get(text_path.name) if text is not None else None
        missing = _missing(folder / name, entry, LATENTS) or _missing(text_path, text_entry, TEXT)
        if missing:
            left_out.append(f"{entry.source}: {missing}")
            continue
        items.append(_item(folder / name, entry, text_path, text_entry, shape, required))
    if left_out:
        emit(Warned(text=_left_out(dataset, left_out)))
    if not items:
        raise ConfigError(_nothing(dataset, shape, left_out))
    return tuple(items)


def _manifest_for(dataset: DatasetConfig, shape: LatentShape, kind: str) -> Manifest | None:
    """The manifest, checked against the dataset file as it is now."""
    folder = dataset.cache_folder
    manifest = read_manifest(folder, shape.short, kind)
    if manifest is None:
        return None
    path = manifest_path(folder, shape.short, kind)
    if manifest.architecture != shape.architecture:
        raise BadFileError(
            f"{path} lists caches for {manifest.architecture}; expected {shape.architecture}. "
            f"Use another cache_directory, or delete the file and run {REBUILD[kind]} again."
        )
    if changes := changed_settings(manifest.dataset, dataset_settings(dataset)):
        raise ConfigError(
            f"{dataset.title}: the dataset file changed since its {kind} was cached ({'; '.join(changes)}). "
            f"Run {REBUILD[kind]} again with this dataset file; what still fits is kept."
        )
    if not manifest.complete:
        raise ConfigError(
            f"{dataset.title}: caching of {kind} in {folder} was interrupted before its end. "
            f"Run {REBUILD[kind]} again; what is done is kept."
        )
    return manifest


def _missing(path: Path, entry: Entry | None, kind: str) -> str:
    """Why a cache file cannot be used, "" when it is there."""
    if entry is not None and entry.failed:
        return entry.failed
    return "" if path.exists() else f"no {kind} cache ({path.name}); run {REBUILD[kind]}"


def _item(
    latents: Path,
    entry: Entry,
    text: Path,
    text_entry: Entry | None,
    shape: LatentShape,
    required: Sequence[str],
) -> CachedItem:
    head = _checked(latents, entry, shape, LATENTS)
    text_head = _checked(text, text_entry, shape, TEXT)
    check_latent_shape(head, entry, shape)
    tensors = {**head.tensors, **text_head.tensors}
    names = {name.removeprefix(VARLEN) for name in tensors}
    for name in required:
        if name not in names:
            path, kind = (latents, LATENTS) if name.startswith("latents") else (text, TEXT)
            raise BadFileError(
                f"{path} has no {name}, which {shape.architecture} needs; it has "
                f"{', '.join(sorted(tensors)) or 'nothing'}. Run {REBUILD[kind]} again."
            )
    return CachedItem(
        stem=entry.stem,
        source=entry.source,
        latents=latents,
        text=text,
        shapes=tuple(
            sorted((n, info.shape, info.dtype) for n, info in tensors.items() if not n.startswith(VARLEN))
        ),
        lists=tuple(sorted(name for name in tensors if name.startswith(VARLEN))),
    )


def _checked(path: Path, entry: Entry | None, shape: LatentShape, kind: str) -> CacheHeader:
    header = read_cache_header(path)
    check_architecture(header, shape.architecture, kind)
    for part, mark in (entry.fingerprints if entry is not None else {}).items():
        if header.fingerprint(part) != mark:
            raise BadFileError(
                f"{path} is not the file that caching planned (its {part} have another fingerprint). "
                f"Run {REBUILD[kind]} again."
            )
    return header


def check_architecture(header: CacheHeader, architecture: str, kind: str) -> None:
    """Raise BadFileError for a cache of another architecture."""
    if header.architecture != architecture:
        raise BadFileError(
            f"{header.path} is a cache for {header.architecture or 'no named architecture'}; expected "
            f"{architecture}. Give each architecture its own cache_directory, or run {REBUILD[kind]} again."
        )


def check_latent_shape(header: CacheHeader, entry: Entry, shape: LatentShape) -> None:
    """Raise BadFileError when the latents do not have the size that the sample should have."""
    info = header.tensors.get("latents")
    if info is None or not entry.bucket[0]:
        return  # reported as a missing tensor; a foreign picture's name does not tell its bucket
    expected = expected_latent(entry, shape)
    if info.shape[0] != shape.channels or latent_grid(info.shape) != expected:
        raise BadFileError(
            f"{header.path} holds latents of shape {list(info.shape)}; expected {shape.channels} channels "
            f"and frames, height, width {list(expected)}. Run {REBUILD[LATENTS]} again."
        )


def expected_latent(entry: Entry, shape: LatentShape) -> tuple[int, int, int]:
    """(F, H, W) of an item's latents; further targets, or controls, are further frames."""
    frames, height, width = shape.size(*entry.bucket, entry.frames)
    return frames + entry.targets, height, width


def latent_grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(F, H, W) of a latent with or without a frame axis."""
    return shape[1:] if len(shape) == 4 else (1, *shape[1:])


def _left_out(dataset: DatasetConfig, lines: list[str]) -> str:
    return f"{dataset.title}: {len(lines)} items are not trained on. " + "; ".join(lines)


def _nothing(dataset: DatasetConfig, shape: LatentShape, left_out: list[str]) -> str:
    folder = dataset.cache_folder
    if left_out:
        return f"{dataset.title} has 0 usable items. " + "; ".join(left_out)
    text = f"{dataset.title} has no {shape.architecture} caches in {folder}."
    if others := other_architectures(folder, shape.short):
        text += f" There are caches of another architecture (ending in {', '.join(others)})."
    return text + f" Run {REBUILD[LATENTS]} and {REBUILD[TEXT]} with this dataset file first."


def _summary(dataset: CachedDataset) -> dict[str, Any]:
    sizes: dict[tuple[int, ...], int] = {}
    for item in dataset.items:
        grid = next((latent_grid(shape) for name, shape, _ in item.shapes if name == "latents"), ())
        sizes[grid] = sizes.get(grid, 0) + 1
    buckets: list[Mapping[str, Any]] = [
        {"latent": list(grid), "count": count * dataset.config.num_repeats}
        for grid, count in sorted(sizes.items())
    ]
    return {
        **dataset.config.summary(),
        "num_items": len(dataset.items),
        "num_train_items": len(dataset.items) * dataset.config.num_repeats,
        "buckets": buckets,
    }
