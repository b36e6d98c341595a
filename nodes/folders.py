"""Where a graph may read and write.

A graph may come from a stranger, and a server may be open to others. So media are read below ComfyUI's input,
output, temp and dataset folders only, and everything is written below its output, temp and model folders and
the cache folder. The owner of the server widens that in `extra_model_paths.yaml`, with the keys
`musubi_datasets` and `musubi_caches`.

Paths are compared as they are written: a link inside one of these folders was put there by the owner.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import folder_paths

from musubi_core.config import nearest
from musubi_core.errors import ConfigError

CACHES, DATASETS = "musubi_caches", "musubi_datasets"
RUNS = "musubi"  # below the output folder
LISTED = 500  # folders or files that a list offers, at most
DEPTH = 4  # levels below a root that are looked at for such a list


def register_folders() -> None:
    """Tell ComfyUI of the cache folder; one in `extra_model_paths.yaml` is known already, and wins."""
    folder_paths.add_model_folder_path(CACHES, str(Path(folder_paths.get_output_directory()) / CACHES))


def cache_root() -> Path:
    """The folder that holds the caches of all datasets."""
    return Path(folder_paths.get_folder_paths(CACHES)[0])


def run_folder(name: str) -> Path:
    """Where a run keeps its states, metrics and everything else that is no finished LoRA."""
    return Path(folder_paths.get_output_directory()) / RUNS / name


def temp_folder() -> Path:
    """For files that only need to live as long as the server."""
    return Path(folder_paths.get_temp_directory()) / RUNS


def media_roots() -> list[Path]:
    """Folders below which a graph may name media, the input folder first."""
    roots = [Path(folder_paths.get_input_directory())]
    for name in (DATASETS, "datasets"):  # the second is ComfyUI's own, in newer versions
        if name in folder_paths.folder_names_and_paths:
            roots += [Path(each) for each in folder_paths.get_folder_paths(name)]
    roots += [Path(folder_paths.get_output_directory()), Path(folder_paths.get_temp_directory())]
    return roots


def write_roots() -> list[Path]:
    """Folders below which a graph may write."""
    roots = [Path(folder_paths.get_output_directory()), Path(folder_paths.get_temp_directory())]
    roots += [Path(folder_paths.models_dir)]
    for name in (CACHES, "loras"):
        roots += [Path(each) for each in folder_paths.get_folder_paths(name)]
    return roots


def media_path(text: str, *, where: str) -> Path:
    """A file or folder of media that a graph names: below the input folder, or by its whole path.

    Raises ConfigError for a path outside of the media roots.
    """
    root = Path(folder_paths.get_input_directory())
    path = absolute(root / text.strip())  # a whole path replaces the root
    if not text.strip():
        raise ConfigError(f"{where} is empty. Give a folder or file below {root}.")
    if not inside(path, media_roots()):
        raise ConfigError(
            f"{where}: {path} is outside of ComfyUI's folders, so a workflow may not read it. Move it into "
            f"{root}, or let the owner of this ComfyUI add `{DATASETS}: {path.parent}` to "
            "extra_model_paths.yaml."
        )
    return path


def cache_path(text: str, source: Path, *, where: str) -> Path:
    """The cache folder of a dataset. text: as the graph names it, "" for one of its own below the cache root.

    Raises ConfigError for a folder that a graph must not write to.
    """
    if not text.strip():
        mark = hashlib.sha256(str(source).encode()).hexdigest()[:8]
        return cache_root() / f"{source.stem}-{mark}"
    path = absolute(cache_root() / text.strip())
    if not inside(path, write_roots()):
        raise ConfigError(
            f"{where}: {path} is outside of the folders that a workflow may write to. Give a folder below "
            f"{cache_root()}, or let the owner of this ComfyUI add `{CACHES}: {path}` to "
            "extra_model_paths.yaml."
        )
    return path


def inside(path: Path, roots: Iterable[Path]) -> bool:
    """Whether the path lies in one of the folders."""
    return any(path.is_relative_to(absolute(root)) for root in roots)


def absolute(path: Path) -> Path:
    """The path without `..`, links kept."""
    return Path(os.path.normpath(Path.cwd() / path))


def media_folders() -> list[str]:
    """Folders that a list of media folders offers, as `media_path` takes them."""
    return _named(path for path in _below(media_roots()[:-2]) if path.is_dir())


def media_files(*endings: str) -> list[str]:
    """Files of these endings that a list offers, as `media_path` takes them."""
    return _named(path for path in _below(media_roots()[:-2]) if path.suffix.lower() in endings)


def not_found(text: str, known: Sequence[str], *, where: str) -> ConfigError:
    """The error for a folder or file that is not there."""
    close = nearest(text, known)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known[:10]) or 'none'}."
    return ConfigError(f"{where}: there is no {text!r}. {hint}")


def _below(roots: Sequence[Path]) -> Iterator[Path]:
    """Folders and files below the roots, a few levels deep; nothing hidden."""
    for root in roots:
        for folder, names, files in os.walk(root, followlinks=True):
            here = Path(folder)
            names[:] = sorted(name for name in names if not name.startswith((".", "__")))
            yield from (here / name for name in (*names, *sorted(files)))
            if len(here.relative_to(root).parts) + 1 >= DEPTH:
                names.clear()


def _named(paths: Iterator[Path]) -> list[str]:
    """Below the input folder without its name, else the whole path."""
    root = Path(folder_paths.get_input_directory())
    names: list[str] = []
    for path in paths:
        names.append((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())
        if len(names) >= LISTED:
            break
    return names
