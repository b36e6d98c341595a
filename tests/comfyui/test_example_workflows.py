"""Every example workflow runs to completion on tiny models, and opens in the front end as it was meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_places import NOT_TESTED, comfyui_folders
from dashboard_stage import Page, chromium
from example_files import EXAMPLES, FOLDER, open_workflow, text_of
from example_tools import WAN_1_3B
from example_training import HUNYUAN, KONTEXT, WAN_PAIR
from safetensors.torch import load_file, save_file
from server import Client, running_server
from stage import link, node, place_models, place_pictures, train_graph
from workflow_maker import prompt_of

NAMES = [example.name for example in EXAMPLES]
SMALL: dict[str, Any] = {
    "resolution": "64 64",
    "max_train_steps": 4,
    "sample_every_n_steps": 2,
    "save_every_n_steps": 2,
    "network_dim": 2,
    "new_rank": 1,
    "blocks_to_swap": 0,
    "steps": 4,
}
SMALL_SAMPLE = {"w": "64", "h": "64", "s": "1"}
# ComfyUI's own nodes take no tiny files; one node of the tests stands for all of these: its output by node.
STAND_INS = {"UNETLoader": 0, "CLIPTextEncode": 1, "EmptyHunyuanLatentVideo": 2}
LEFT_OUT = ("CLIPLoader", "VAELoader", "SaveImage", "SaveAnimatedWEBP", *STAND_INS)
OWN_RUN = "my_wan_lora"  # what the examples for trained LoRAs begin with
TINY = "wide.safetensors"


def _wider(base: Path, file: str) -> None:
    """A copy of the tiny network with as wide a text as ComfyUI takes every Wan to have."""
    models = base / "models" / "diffusion_models"
    weights = load_file(models / file)
    rows = weights["text_embedding.0.weight"].shape[0]
    text = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(9)) / 64
    save_file({**weights, "text_embedding.0.weight": text.to(torch.bfloat16)}, models / TINY)


@pytest.fixture(
    params=[
        pytest.param(folder, marks=pytest.mark.slow) if place else folder
        for place, folder in enumerate(comfyui_folders() or [None])
    ],
    ids=str,
    scope="module",
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with what the notes ask for: models, pictures with captions, pairs."""
    if request.param is None:
        pytest.skip(NOT_TESTED)
    tiny: dict[str, dict[str, str]] = {}

    def prepare(base: Path) -> None:
        for name in ("hunyuan_video", "wan", "flux_kontext"):
            tiny[name] = place_models(base, name)
        _wider(base, tiny["wan"]["dit"])
        place_pictures(base / "input" / "my_photos")
        place_pictures(base / "input" / "edits_after")
        place_pictures(base / "input" / "edits_before", seed=1)

    with running_server(request.param, tmp_path_factory.mktemp("examples"), prepare=prepare) as client:
        client.files = tiny
        yield client


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tiny_names(tiny: Mapping[str, Mapping[str, str]], prompt: Mapping[str, Any]) -> dict[str, str]:
    """The tiny file for each file that a workflow names."""
    names = {WAN_1_3B: TINY}
    models = {"hunyuan_video": HUNYUAN, "wan": WAN_PAIR, "flux_kontext": KONTEXT}
    used = [one["inputs"].get("architecture") for one in prompt.values()]
    for architecture in [name for name in models if name in used]:
        for option, real in models[architecture].items():
            key = option.removeprefix("architecture.").replace("dit_high_noise", "dit")
            if key in tiny[architecture]:
                names[str(real)] = tiny[architecture][key]
    return names


def smaller(prompt: dict[str, Any], tiny: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The same graph, with tiny files, sizes and step counts."""
    names = tiny_names(tiny, prompt)
    kinds = {key: one["class_type"] for key, one in prompt.items()}
    made: dict[str, Any] = {}
    for key, one in prompt.items():
        if kinds[key] in LEFT_OUT:
            continue
        if kinds[key] == "VAEDecode":
            made[key] = node("TestDigest", value=one["inputs"]["samples"])
            continue
        inputs = {name: small(name, value, names) for name, value in one["inputs"].items()}
        for name, value in inputs.items():
            if isinstance(value, list) and kinds[value[0]] in STAND_INS:
                inputs[name] = link("tiny", STAND_INS[kinds[value[0]]])
        made[key] = {"class_type": kinds[key], "inputs": inputs}
    if STAND_INS.keys() & set(kinds.values()):
        made["tiny"] = node("TestTinyWan", file=TINY)
    return made


def small(name: str, value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return value
    if name == "prompts":
        return re.sub(r"--([whs]) \d+", lambda found: f"--{found[1]} {SMALL_SAMPLE[found[1]]}", value)
    return names.get(value, value) if isinstance(value, str) and name not in SMALL else SMALL.get(name, value)


def run(client: Client, prompt: Mapping[str, Any]) -> None:
    outcome = client.run(prompt)
    assert outcome.state == "success", client.logged()[-3000:]


@pytest.fixture(scope="module")
def trained(served: Client) -> Client:
    """The LoRAs that the examples take for granted, trained on tiny models."""
    for architecture, name in (("wan", OWN_RUN), ("hunyuan_video", "my_hunyuan_lora_of_before")):
        files = {**served.files[architecture]}
        graph = train_graph(files, name, name=architecture, folder="my_photos")
        graph["saving"] = node("MusubiSaving", save_every_n_steps=1)
        graph["train"]["inputs"]["saving"] = link("saving")
        run(served, graph)
    loras = served.base / "output" / "loras"
    target = loras / "my_hunyuan_lora.safetensors"
    if not target.exists():
        (loras / "my_hunyuan_lora_of_before.safetensors").rename(target)
    return served


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_runs_to_completion(trained: Client, name: str):
    info = trained.get("/object_info")
    run(trained, smaller(prompt_of(workflow(name), info), trained.files))
    assert "lora key not loaded" not in trained.logged()


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_there(served: Client, name: str):
    info = served.get("/object_info")
    missing = {one["type"] for one in workflow(name)["nodes"]} - set(info) - {"MarkdownNote"}
    assert missing == set()


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_the_file_is_what_its_source_makes(served: Client, example: Any):
    """After a change of an example or of a schema: python tests/comfyui/example_files.py ~/ComfyUI."""
    info = served.get("/object_info")
    if "bypass" not in info["LoraModelLoader"]["input"]["required"]:
        pytest.skip("the files are made with a newer ComfyUI")
    written = (FOLDER / f"{example.name}.json").read_text(encoding="utf-8")
    assert written == text_of(example, info)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_note_and_a_picture(name: str):
    assert any(one["type"] == "MarkdownNote" for one in workflow(name)["nodes"])
    assert (FOLDER / f"{name}.jpg").is_file()


@pytest.fixture(scope="module")
def page(served: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        opened = Page(browser, served.url)
        opened.open()
        yield opened


@pytest.mark.parametrize("name", NAMES)
def test_the_front_end_queues_what_the_file_means(page: Page, served: Client, name: str):
    open_workflow(page, workflow(name))
    unknown = "window.app.graph.nodes.filter((one) => !window.LiteGraph.registered_node_types[one.type])"
    assert page.js(f"return {unknown}.map((one) => one.type)") == []
    queued = page.js("return window.app.graphToPrompt().then((one) => one.output)")
    expected = prompt_of(workflow(name), served.get("/object_info"))
    assert {key: (one["class_type"], one["inputs"]) for key, one in queued.items()} == {
        key: (one["class_type"], one["inputs"]) for key, one in expected.items()
    }
