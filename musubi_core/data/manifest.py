"""What our caching planned and wrote in one cache folder, as one JSON file per kind of cache.

The manifest is written before anything is encoded and lists every file of the plan, with the fingerprint
that the file will carry. So after a kill at any moment, each file of ours is listed, and a file whose own
fingerprint differs from the planned one is known to be out of date. Only listed files are ever deleted.

Latents and text have a manifest each, so that both jobs may run at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_core.config import options_of, read_json, values_of
from musubi_core.data.dataset import DatasetConfig
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.replace import write_json

MANIFEST_FORMAT = 1
LATENTS = "latents"
TEXT = "text"
REBUILD = {LATENTS: "musubi cache-latents", TEXT: "musubi cache-text"}

# Keys of a dataset that say how often and with whom a cached item is shown, not what is in the cache.
_NOT_IN_CACHE = ("batch_size", "num_repeats", "cache_directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cache file.

    fingerprints: part ("latents", or the name of a text pass) -> what the file must carry; empty for a file
    of musubi-tuner that was accepted as it is. targets: latent frames beyond those of the window, for further
    targets or controls. failed: why it could not be made. used: False when stale.
    """

    stem: str
    source: str
    is_video: bool = False
    bucket: tuple[int, int] = (0, 0)  # width, height; latents only, like the window
    start: int = 0
    frames: int = 1
    targets: int = 0
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    failed: str = ""
    used: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The plan of a cache folder. complete: the job that wrote it came to its end, failures included."""

    architecture: str
    dataset: Mapping[str, Any]
    complete: bool = False
    entries: Mapping[str, Entry] = field(default_factory=dict)  # by file name
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see MediaHashes.facts


def manifest_path(folder: Path, short: str, kind: str) -> Path:
    """Where the manifest of an architecture's latents or text lies."""
    return folder / f"musubi_{kind}_{short}.json"


def read_manifest(folder: Path, short: str, kind: str) -> Manifest | None:
    """The manifest, or None when this program has cached nothing there. Raises BadFileError when damaged."""
    path = manifest_path(folder, short, kind)
    if not path.exists():
        return None
    try:
        data = read_json(path)
        if data["format"] != MANIFEST_FORMAT:
            raise ValueError(f"its format is {data['format']}, this program knows {MANIFEST_FORMAT}")
        entries = {name: _entry(values) for name, values in data["files"].items()}
        return Manifest(
            architecture=str(data["architecture"]),
            dataset=dict(data["dataset"]),
            complete=data["complete"] is True,
            entries=entries,
            media={str(name): dict(facts) for name, facts in data["media"].items()},
        )
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(
            f"{path} is damaged or from another version: {error}. Delete this file and run "
            f"{REBUILD[kind]} again; cache files that still fit are kept."
        ) from None


def write_manifest(folder: Path, short: str, kind: str, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    data = {
        "format": MANIFEST_FORMAT,
        "architecture": manifest.architecture,
        "complete": manifest.complete,
        "dataset": dict(manifest.dataset),
        "files": {name: dataclasses.asdict(entry) for name, entry in sorted(manifest.entries.items())},
        "media": dict(manifest.media),
    }
    write_json(manifest_path(folder, short, kind), data)


def dataset_settings(dataset: DatasetConfig) -> dict[str, Any]:
    """The settings of a dataset that decide what is cached, as JSON values."""
    return {name: _json(value) for name, value in values_of(dataset).items() if name not in _NOT_IN_CACHE}


def changed_settings(cached: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences such as "resolution was [512, 512], is [768, 768]", one per setting that differs.

    A setting that one side does not know, being of another version, counts with its default.
    """
    default = {info.name: _json(info.default) for info in options_of(DatasetConfig)}
    before, after = {**default, **cached}, {**default, **now}
    return [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted({*cached, *now})
        if before.get(name) != after.get(name)
    ]


def _json(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_json(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value


def _entry(values: Mapping[str, Any]) -> Entry:
    width, height = values["bucket"]
    return Entry(
        stem=str(values["stem"]),
        source=str(values["source"]),
        is_video=bool(values["is_video"]),
        bucket=(int(width), int(height)),
        start=int(values["start"]),
        frames=int(values["frames"]),
        targets=int(values["targets"]),
        fingerprints={str(part): str(mark) for part, mark in values["fingerprints"].items()},
        failed=str(values["failed"]),
        used=bool(values["used"]),
    )
