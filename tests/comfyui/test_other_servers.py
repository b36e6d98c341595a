"""Training under other ways to start ComfyUI, and of every architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_same_lora, with_command_line
from server import Client, Outcome, running_server
from stage import ARCH, STEPS, link, node, place_models, place_pictures, train_graph

from musubi_core.files.tensors import read_tensors
from musubi_core.models.registry import architecture, architectures

pytestmark = pytest.mark.slow  # a server for each of them
NAMES = [spec.name for spec in architectures()]


def placed(files: dict[str, dict[str, str]]):
    def prepare(base: Path) -> None:
        for name in NAMES:
            files[name] = place_models(base, name)
        place_pictures(base / "input" / "cats")
        place_pictures(base / "input" / "controls", seed=1)

    return prepare


def takes_controls(name: str) -> bool:
    return architecture(name).latent.max_controls != 0


def trained(comfy: Client, files: dict[str, dict[str, str]], name: str) -> Outcome:
    graph = train_graph(files[name], name, name=name)
    if takes_controls(name):
        graph["data"]["inputs"]["control_directory"] = "controls"
    graph["losses"] = node("TestShows", value=link("train", 3))
    outcome = comfy.run(graph)
    assert outcome.state == "success", comfy.logged()[-3000:]
    assert len(json.loads(outcome.texts("losses"))["loss"]) == STEPS
    lora = comfy.base / "output" / "loras" / f"{name}.safetensors"
    assert any("lora_down" in key for key in read_tensors(lora))
    return outcome


@pytest.mark.parametrize("flag", ["--cache-none", "--disable-smart-memory"])
def test_training_works_under(flag: str, comfyui_folder: Path, tmp_path: Path):
    files: dict[str, dict[str, str]] = {}
    with running_server(comfyui_folder, tmp_path, flag, prepare=placed(files)) as comfy:
        trained(comfy, files, ARCH)


@pytest.mark.gpu  # without a card ComfyUI starts with --cpu alone
@pytest.mark.parametrize("flag", ["--lowvram", "--novram", "--highvram", "--disable-dynamic-vram"])
def test_training_works_on_a_card_under(flag: str, comfyui_folder: Path, tmp_path: Path):
    files: dict[str, dict[str, str]] = {}
    with running_server(comfyui_folder, tmp_path, flag, prepare=placed(files), on_cpu=False) as comfy:
        trained(comfy, files, ARCH)


def test_every_architecture_trains_as_the_command_line_does(comfyui_folder: Path, tmp_path: Path):
    files: dict[str, dict[str, str]] = {}
    with running_server(comfyui_folder, tmp_path, prepare=placed(files)) as comfy:
        for name in NAMES:
            trained(comfy, files, name)
            folder = tmp_path / name
            folder.mkdir()
            controls = comfy.base / "input" / "controls" if takes_controls(name) else None
            with_command_line(comfy, name, files[name], folder, controls)
            assert_same_lora(
                comfy.base / "output" / "loras" / f"{name}.safetensors", folder / "cli.safetensors"
            )
