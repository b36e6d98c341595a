"""Fixtures of the tests of nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_schemas import TELL, load


@pytest.fixture(scope="module")
def pack(comfyui: Callable[[str, Path], Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pack shows to ComfyUI, and what loading it took."""
    return comfyui(load() + TELL, tmp_path_factory.mktemp("pack"))
