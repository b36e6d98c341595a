"""The LoRA workshop in a real ComfyUI: one run, and every tool on what it saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from server import Client, Outcome, Refused
from stage import link, node, train_graph


@pytest.fixture(scope="module")
def run(comfy: Client) -> Outcome:
    """A run that saved a LoRA and a running average at each step."""
    graph = train_graph(comfy.files, "tools", learning_rate=0.01)
    graph["saving"] = node("MusubiSaving", save_every_n_steps=1, ema_sigma_rel="0.05 0.1")
    graph["optimizer"] = node("MusubiOptimizer", learning_rate=0.01)
    graph["train"]["inputs"] |= {"saving": link("saving"), "optimizer": link("optimizer")}
    graph["train"]["inputs"].pop("learning_rate")
    outcome = comfy.run(graph)
    assert outcome.state == "success", comfy.logged()[-3000:]
    return outcome


def loras(comfy: Client) -> Path:
    return comfy.base / "output" / "loras"


def test_every_tool_makes_its_lora_and_says_what_it_did(comfy: Client, run: Outcome):
    model = comfy.files["dit"]
    graph = {
        "saved": node("MusubiRunCheckpoints", run="tools", when="saved by step"),
        "averages": node("MusubiRunCheckpoints", run="tools", when="saved by step", averages=True),
        "sweep": node("MusubiAverageLoras", loras=link("saved"), output_name="swept", beta="0.5 0.9"),
        "stored": node(
            "MusubiAverageLoras",
            loras=link("averages"),
            output_name="stored",
            sigma_rel="0.08",
            weighting="stored",
        ),
        "convert": node(
            "MusubiConvertLora", lora_name="tools.safetensors", output_name="kohya", target="diffusers"
        ),
        "one": node("MusubiLoraList", lora_name="tools.safetensors", strength=0.5),
        "two": node("MusubiLoraList", lora_name="tools.safetensors", strength=1.0),
        "into": node(
            "MusubiMergeIntoModel", loras=link("two"), model_name=model, output_name="with the lora"
        ),
        "resize": node(
            "MusubiResizeLora", lora_name="tools.safetensors", output_name="small", recipe="", new_rank=1
        ),
        "inspect": node("MusubiInspectFile", file="tools.safetensors"),
        "fp8": node("MusubiSaveFp8Model", model_name=model, output_name="in fp8"),
    }
    outcome = comfy.run(graph)
    assert outcome.state == "success", comfy.logged()[-3000:]

    made = {path.name for path in loras(comfy).iterdir()}
    assert {"kohya.safetensors", "small.safetensors"} <= made
    swept = sorted(name for name in made if name.startswith("swept"))
    assert len(swept) == 2
    assert set(swept) <= set(comfy.get("/models/loras")), "ComfyUI lists what was made"
    for name in swept:
        assert name in outcome.texts("sweep")
    assert any(name.startswith("stored") for name in made)
    ranks = {t.shape[0] for k, t in load_file(loras(comfy) / "small.safetensors").items() if "down" in k}
    assert ranks == {1}
    words = outcome.texts("inspect")
    assert "tools.safetensors" in words and str(comfy.base) not in words
    models = comfy.base / "output" / "diffusion_models"
    merged = load_file(models / "with the lora.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    assert any(t.dtype == torch.float8_e4m3fn for t in load_file(models / "in fp8.safetensors").values())

    extracted = comfy.run(
        {
            "difference": node(
                "MusubiExtractLora",
                model_org=model,
                model_tuned="with the lora.safetensors",
                output_name="extracted",
                dim=2,
                save_precision="fp32",
            ),
            "list": node("MusubiLoraList", lora_name="tools.safetensors", strength=0.5),
            "lists": node(
                "MusubiLoraList", lora_name="small.safetensors", strength=-0.5, others=link("list")
            ),
            "merge": node("MusubiMergeLoras", loras=link("lists"), output_name="sum", new_rank=2),
        }
    )
    assert extracted.state == "success", comfy.logged()[-3000:]
    assert (loras(comfy) / "extracted.safetensors").is_file()
    assert (loras(comfy) / "sum.safetensors").is_file()


def test_nothing_is_overwritten_unless_asked(comfy: Client, run: Outcome):
    saved = node("MusubiRunCheckpoints", run="tools", when="saved by step")
    before = (loras(comfy) / "tools.safetensors").read_bytes()
    graph = {
        "saved": saved,
        "sweep": node("MusubiAverageLoras", loras=link("saved"), output_name="tools", beta="0.5"),
    }
    with pytest.raises(Refused, match=r"tools\.safetensors is in"):
        comfy.run(graph)
    assert (loras(comfy) / "tools.safetensors").read_bytes() == before
    graph["sweep"]["inputs"] |= {"output_name": "../tools"}
    with pytest.raises(Refused, match="output_name"):
        comfy.run(graph)
    assert not (comfy.base / "output" / "tools.safetensors").exists()
