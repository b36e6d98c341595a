"""From the inputs of a dataset node to a checked `[[datasets]]` table, and what its files look like now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from musubi_core.config import read_config
from musubi_core.data.dataset import dataset_from, read_datasets
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.data.jsonl import list_jsonl
from musubi_core.errors import ConfigError, MusubiError

from ..folders import DATASETS, cache_path, inside, media_path, media_roots, write_roots
from ..inputs import values_from
from ..values import Dataset

PATHS = ("image_directory", "video_directory", "image_jsonl_file", "video_jsonl_file", "control_directory")
SOURCES = PATHS[:4]
OWN_CACHES = "in ComfyUI's cache folder"


def table_of(given: Mapping[str, Any], sources: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A checked table with the JSON values of a node's inputs.

    sources: what names the media, e.g. {"image_directory": "cats"}. Raises ConfigError, also for paths that a
    graph may not use.
    """
    settings = {name: value for name, value in given.items() if name not in (*PATHS, "cache_directory")}
    values = values_from(DatasetConfig, settings, where=where)
    paths = {**sources, "control_directory": given.get("control_directory")}
    for name, text in paths.items():
        if text and str(text).strip():
            values[name] = media_path(str(text), where=f"{where}: {name}")
    source = next(values[name] for name in SOURCES if name in values)
    values["cache_directory"] = cache_path(
        str(given.get("cache_directory") or ""), source, where=f"{where}: cache_directory"
    )
    table = {name: _plain(value) for name, value in values.items() if value is not None}
    check_paths(dataset_from(table, where=where))
    return table


def tables_of_file(path: Path, *, caches: str) -> Dataset:
    """The tables of a dataset file. caches: OWN_CACHES, or anything else for the folders that it names."""
    general = read_config(path).get("general", {})
    tables = []
    for config, written in zip(read_datasets(path), read_config(path)["datasets"], strict=True):
        folder = config.cache_folder
        if caches == OWN_CACHES:
            folder = cache_path("", config.cache_folder, where=config.title)
        elif not inside(folder, write_roots()):
            cache_path(str(folder), config.source, where=f"{config.title}: cache_directory")
        table = {**general, **written, "cache_directory": str(folder)}
        check_paths(dataset_from(table, where=config.where))
        tables.append(table)
    return Dataset(tables=tuple(tables))


def check_paths(dataset: DatasetConfig) -> None:
    """Raises ConfigError when a dataset names media outside of the folders that a graph may read."""
    roots = media_roots()
    for path in _named_paths(dataset):
        if not inside(path, roots):
            raise ConfigError(
                f"{dataset.title}: {path} is outside of ComfyUI's folders, so a workflow may not read it. "
                f"Move it into {roots[0]}, or let the owner of this ComfyUI add `{DATASETS}: {path.parent}` "
                "to extra_model_paths.yaml."
            )


def state_of(dataset: Dataset) -> str:
    """A text that changes when a media file, a caption or a list of a dataset changes."""
    digest = hashlib.sha256(repr(dataset.tables).encode())
    for number, table in enumerate(dataset.tables):
        config = dataset_from(table, where=f"datasets[{number}]")
        files = [*_named_paths(config)]
        for path in (*files, *(one for folder in files if folder.is_dir() for one in _files(folder))):
            digest.update(f"{path} {_stamp(path)}\n".encode())
    return digest.hexdigest()


def _named_paths(dataset: DatasetConfig) -> Iterator[Path]:
    """Every folder and file that a dataset names; what lies in the folders is not listed."""
    yield dataset.source
    if dataset.control_directory is not None:
        yield dataset.control_directory
    if dataset.jsonl_file is not None:
        for each in list_jsonl(dataset, with_controls=True).candidates:
            yield from (Path.cwd() / path for path in (each.path, *each.targets, *each.controls))


def _files(folder: Path) -> Iterable[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}" if not path.is_dir() else "folder"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def fingerprint(make: Any, given: Mapping[str, Any]) -> str:
    """The state of the dataset that `make(given)` describes, or why there is none."""
    try:
        return state_of(make(given))
    except MusubiError as error:
        return str(error)
