"""Training in a real ComfyUI: from pictures to a LoRA that its own nodes use."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from server import Client, Outcome
from stage import STEPS, link, node, train_graph

from musubi_core.files.tensors import read_tensors


def lora_file(comfy: Client, name: str) -> Path:
    return comfy.base / "output" / "loras" / f"{name}.safetensors"


def census(comfy: Client) -> dict[str, Any]:
    """Tensors alive in the server, and its state."""
    outcome = comfy.run({"census": node("TestCensus", time=time.monotonic_ns() % 2**31)})
    return json.loads(outcome.texts("census"))


@pytest.fixture(scope="module")
def first(comfy: Client) -> Outcome:
    """One training, whose results several tests look at."""
    graph = train_graph(comfy.files, "first")
    graph["shown"] = node("TestShows", value=link("train", 3))
    graph["lora"] = node("TestDigest", value=link("train", 0))
    outcome = comfy.run(graph)
    assert outcome.state == "success", comfy.logged()[-3000:]
    return outcome


def test_a_graph_trains_a_lora_into_comfyuis_folder(comfy: Client, first: Outcome):
    lora = lora_file(comfy, "first")
    assert f"{STEPS} of {STEPS} steps.\nLoRA: {lora}" == first.texts("train")
    assert any(name.endswith("lora_down.weight") for name in read_tensors(lora))
    assert "first.safetensors" in comfy.get("/models/loras")
    losses = json.loads(first.texts("shown"))["loss"]
    assert len(losses) == STEPS
    assert all(0 < loss < 10 for loss in losses)
    assert first.outputs["train"]["images"]  # the plot


def test_progress_is_told_while_it_trains(first: Outcome):
    bars = [one["data"] for one in first.events if one["type"] == "progress"]
    assert {"value": STEPS, "max": STEPS}.items() <= bars[-1].items()
    assert "musubi.job" in first.kinds()


def test_an_unchanged_graph_is_not_run_again(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "first")
    again = comfy.run(graph)
    assert again.state == "success"
    assert again.executed() == []
