"""Fixtures of every room."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_places import NOT_TESTED, comfyui_folders, python_of


def pytest_configure() -> None:
    """One thread per test process, also in programs that tests start, and no network.

    The tensors are tiny: more threads only wait for each other, and other counts round differently.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a card are skipped without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA card"))


COMFYUI_START = """
import sys
sys.path.insert(0, {folder!r})
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
"""


@pytest.fixture(params=comfyui_folders() or [None], ids=str, scope="module")
def comfyui(request: pytest.FixtureRequest) -> Callable[[str, Path], Any]:
    """Runs Python code in a real ComfyUI, in a process of its own, and returns the JSON printed last.

    (code, folder for the script) -> JSON. For fixtures that many tests share: a start takes seconds.
    """
    folder: Path | None = request.param
    if folder is None:
        pytest.skip(NOT_TESTED)
    python = python_of(folder)

    def run(code: str, place: Path) -> Any:
        script = place / "in_comfyui.py"
        script.write_text(COMFYUI_START.format(folder=str(folder)) + code, encoding="utf-8")
        done = subprocess.run(
            [str(python), str(script)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def in_comfyui(comfyui: Callable[[str, Path], Any], tmp_path: Path) -> Callable[[str], Any]:
    """`comfyui` with the test's own folder."""
    return lambda code: comfyui(code, tmp_path)
