"""Dataset files: TOML or JSON with one `general` table and an array of tables `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from musubi_core.config import ConfigError, OptionInfo, build, options_of, read_config, unknown_key
from musubi_core.data.dataset_config import DatasetConfig, fingerprint_settings, item_options

__all__ = ["DatasetConfig", "dataset_from", "fingerprint_settings", "item_options", "read_datasets"]

GENERAL_KEYS = frozenset(
    ("resolution", "caption_extension", "batch_size", "num_repeats", "enable_bucket", "bucket_no_upscale")
)
SHARED_KEYS = frozenset(("cache_directory", "control_directory", "fp_latent_window_size"))
IMAGE_KEYS = frozenset(
    (
        *(
            "image_directory",
            "image_jsonl_file",
            "multiple_target",
            "no_resize_control",
            "control_resolution",
        ),
        *("fp_1f_clean_indices", "fp_1f_target_index", "fp_1f_no_post"),
    )
)
VIDEO_KEYS = frozenset(
    (
        *("video_directory", "video_jsonl_file", "target_frames", "frame_extraction", "frame_stride"),
        *("frame_sample", "max_frames", "source_fps"),
    )
)
SIZE_KEYS = ("resolution", "control_resolution")


def read_datasets(path: Path, defaults: Mapping[str, Any] | None = None) -> tuple[DatasetConfig, ...]:
    """The datasets of a file, checked.

    defaults: values of the running job for keys that neither the dataset nor `[general]` sets.
    Raises ConfigError: unreadable file, unknown key, wrong type or value, contradiction, missing folder, two
    datasets with one cache folder, no dataset at all.
    """
    data = read_config(path)
    for key in data:
        if key not in ("general", "datasets"):
            raise unknown_key(key, ("general", "datasets"), where=str(path), kind="table")
    general = data.get("general", {})
    tables = data.get("datasets", [])
    if not isinstance(general, dict):
        raise ConfigError(f"{path}: general is a {type(general).__name__}; expected one table, [general].")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: datasets must be an array of tables: write [[datasets]], not [datasets].")
    if not tables:
        raise ConfigError(f"{path} has no datasets. Add a [[datasets]] table, e.g. with image_directory.")
    datasets = tuple(
        dataset_from(table, general=general, defaults=defaults, where=f"{path}: datasets[{number}]")
        for number, table in enumerate(tables)
    )
    check_cache_folders(datasets)
    return datasets


def dataset_from(
    table: Mapping[str, Any],
    *,
    general: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    where: str = "dataset",
) -> DatasetConfig:
    """One checked dataset. Precedence per key: table, general, defaults, the default of the option."""
    _check_general(general or {}, where)
    kind = "video" if {"video_directory", "video_jsonl_file"} & set(table) else "image"
    notes: list[str] = []
    own = _known_keys(table, kind, where, notes)
    fallback = {
        key: value for key, value in (defaults or {}).items() if key in GENERAL_KEYS and value is not None
    }
    values = {**fallback, **(general or {}), **own}
    for key in SIZE_KEYS:
        if key in values:
            values[key] = _size(values[key], key, where)
    config = build(DatasetConfig, values, where=where)
    ending = config.caption_extension
    if ending and "." not in ending:
        notes.append(f'caption_extension = "{ending}" was read as ".{ending}".')
        ending = f".{ending}"
    config = replace(config, where=where, caption_extension=ending)
    config.check()
    return replace(config, notes=(*notes, *config.remarks()))


def check_cache_folders(datasets: tuple[DatasetConfig, ...]) -> None:
    """Raise ConfigError when two datasets would write into one cache folder."""
    owners: dict[Path, DatasetConfig] = {}
    for dataset in datasets:
        folder = dataset.cache_folder.resolve()
        other = owners.setdefault(folder, dataset)
        if other is not dataset:
            raise ConfigError(
                f"{other.title} and {dataset.title} share the cache folder {folder}. "
                "Give each dataset a cache_directory of its own, so that caches cannot be mixed up."
            )


def _check_general(general: Mapping[str, Any], where: str) -> None:
    place = f"{where.rpartition(': ')[0] or where}: [general]"
    for key in general:
        if key in GENERAL_KEYS:
            continue
        if key in _known():
            raise ConfigError(f"{place}: {key} belongs in a [[datasets]] table, where it may differ.")
        raise unknown_key(key, GENERAL_KEYS, where=place, kind="key")


def _known_keys(table: Mapping[str, Any], kind: str, where: str, notes: list[str]) -> dict[str, Any]:
    """The table under current names. Raises ConfigError for unknown keys and keys of the other kind."""
    allowed = GENERAL_KEYS | SHARED_KEYS | (VIDEO_KEYS if kind == "video" else IMAGE_KEYS)
    own: dict[str, Any] = {}
    for key, value in table.items():
        info = _known().get(key)
        name = info.name if info else key
        if name != key and name in table:
            notes.append(f"{key} is an old name of {name}, which is set too; {key} is ignored.")
            continue
        if name not in allowed:
            if info is None:
                raise unknown_key(key, allowed, where=where, kind="key")
            raise _wrong_kind(key, kind, table, where)
        own[name] = value
    return own


def _wrong_kind(key: str, kind: str, table: Mapping[str, Any], where: str) -> ConfigError:
    other = "video" if kind == "image" else "image"
    sources = [name for name in table if name in (f"{kind}_directory", f"{kind}_jsonl_file")]
    if not sources:
        return ConfigError(
            f"{where} sets {key}, a key of {other} datasets, but names no media. "
            f"Set {other}_directory or {other}_jsonl_file."
        )
    if key in (f"{other}_directory", f"{other}_jsonl_file"):
        return ConfigError(
            f"{where} sets {sources[0]} and {key}, but a dataset has one source. "
            "Keep one of them, and put the other in a [[datasets]] table of its own."
        )
    return ConfigError(f"{where}: {key} is for {other} datasets; {sources[0]} makes this one of {kind}s.")


def _known() -> dict[str, OptionInfo]:
    return {name: info for info in options_of(DatasetConfig) for name in (info.name, *info.aliases)}


def _size(value: Any, key: str, where: str) -> list[Any]:
    """512 or [512] or [960, 544] as [width, height]; numbers are checked with all other options."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(sides) not in (1, 2):
        raise ConfigError(f"{where}: {key} = {value!r}; expected one number or [width, height].")
    return sides * 2 if len(sides) == 1 else sides
