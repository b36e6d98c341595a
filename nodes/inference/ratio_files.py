"""Files of magnitude ratios: measured ones below the output folder, shared ones in the models folder."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from musubi_core.errors import ConfigError

from ..folders import not_found, run_folder

FOLDER = "magcache"
ENDING = ".json"
NAME = re.compile(r"\w[\w .()-]*")


def ratio_folders() -> list[Path]:
    """Where files are looked for; new ones go to the first."""
    return [run_folder(FOLDER), Path(folder_paths.models_dir) / FOLDER]


def ratio_names() -> list[str]:
    """Files that a graph may choose, sorted; the first folder wins for names that both have."""
    return sorted({file.name for folder in ratio_folders() for file in folder.glob(f"*{ENDING}")})


def ratio_path(name: str) -> Path:
    """The file behind a name of `ratio_names`. Raises ConfigError."""
    found = next((folder / name for folder in ratio_folders() if name in _names(folder)), None)
    if found is None:
        raise not_found(name, ratio_names(), where="file")
    return found


def new_ratio_path(name: str) -> Path:
    """Where a measurement called `name` is written. Raises ConfigError for a name that is no file name."""
    if not NAME.fullmatch(name.strip()):
        raise ConfigError(
            f"name is {name!r}; expected letters, digits, spaces and _ - . ( ), without folders."
        )
    return ratio_folders()[0] / f"{name.strip().removesuffix(ENDING)}{ENDING}"


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.glob(f"*{ENDING}")}
