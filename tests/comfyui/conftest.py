"""One server per version of ComfyUI, shared by all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_places import NOT_TESTED, comfyui_folders
from server import Client, running_server
from stage import ARCH, place_models, place_pictures


@pytest.fixture(params=comfyui_folders() or [None], ids=str, scope="module")
def comfyui_folder(request: pytest.FixtureRequest) -> Path:
    """Every installation; the tests that need one say loudly that they did not run."""
    if request.param is None:
        pytest.skip(NOT_TESTED)
    return Path(request.param)


@pytest.fixture(scope="module")
def comfy(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with tiny model files, and pictures in input/cats."""
    files: dict[str, str] = {}

    def prepare(base: Path) -> None:
        files.update(place_models(base, ARCH))
        place_pictures(base / "input" / "cats")

    with running_server(comfyui_folder, tmp_path_factory.mktemp("server"), prepare=prepare) as client:
        client.files = files
        yield client
