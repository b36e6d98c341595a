"""Parts of the pack that need no ComfyUI, under a name of their own: ComfyUI has a module called `nodes`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAME = "musubi_pack_without_comfyui"


def pack_module(name: str) -> Any:
    """The module nodes/<name>.py."""
    if NAME not in sys.modules:
        package = types.ModuleType(NAME)
        package.__path__ = [str(ROOT / "nodes")]
        sys.modules[NAME] = package
    return importlib.import_module(f"{NAME}.{name}")
