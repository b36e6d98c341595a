"""Where ComfyUI is installed on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NOT_TESTED = "NOT TESTED: no ComfyUI found; set COMFYUI_PATH to its folder"


def comfyui_folders() -> list[Path]:
    """Installations of ComfyUI: those named in COMFYUI_PATH, else the usual places."""
    named = [Path(text) for text in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if text]
    usual = [Path.home() / "ComfyUI", Path.home() / "ComfyUI-0.8"]
    return [folder for folder in named or usual if (folder / "main.py").is_file()]


def python_of(folder: Path) -> Path:
    """The Python of an installation: its own environment's, else the one that runs the tests."""
    own = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    return next((path for path in own if path.is_file()), Path(sys.executable))
