"""The demo's folder: emptied of an earlier demo, never of anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

from musubi_core.errors import ConfigError
from musubi_core.files.replace import write_text

MARK = ".musubi_demo"


def fresh_folder(folder: Path) -> Path:
    """An empty folder that carries our mark. Raises ConfigError if it holds anything but an earlier demo."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise ConfigError(
                f"{folder} is not empty and was not made by the demo, so it is left alone. "
                "Give another folder with --output_dir."
            )
        shutil.rmtree(folder)
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Give a folder with --output_dir.")
    write_text(folder / MARK, "Made by `musubi demo`, which empties this folder at its next start.\n")
    return folder.resolve()
