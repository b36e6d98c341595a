"""Inference nodes in a real server: graphs run, bad ones are refused, ComfyUI's own nodes take the MODEL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from server import Client
from stage import link, node

TEXT_WIDTH = 4096  # ComfyUI takes that for granted; the tiny network has less
FILE = "wide.safetensors"
STEPS = 10


@pytest.fixture(scope="module")
def wide(comfy: Client) -> Client:
    """A server with a tiny network that ComfyUI's own loader takes."""
    models = comfy.base / "models" / "diffusion_models"
    weights = load_file(models / comfy.files["dit"])
    rows = weights["text_embedding.0.weight"].shape[0]
    text = torch.randn(rows, TEXT_WIDTH, generator=torch.Generator().manual_seed(9)) / TEXT_WIDTH**0.5
    weights["text_embedding.0.weight"] = text.to(weights["text_embedding.0.weight"].dtype)
    save_file(weights, models / FILE)
    return comfy


def fp8(**inputs: Any) -> dict[str, Any]:
    return node("MusubiLoadFp8Model", model_name=FILE, **inputs)


def magcache(source: str, **inputs: Any) -> dict[str, Any]:
    given = {"enabled": True, "preset": "custom", "threshold": 0.5, "k": 2, "retention": 0.2}
    return node("MusubiMagCache", **{"model": link(source), "model_type": "auto", **given, **inputs})


def sampled(**nodes: dict[str, Any]) -> dict[str, Any]:
    """KSampler on the last of `nodes`, and the hash of its picture."""
    last = list(nodes)[-1]
    return {
        **nodes,
        "tiny": node("TestTinyWan", file=FILE),
        "sample": node(
            "KSampler",
            model=link(last),
            positive=link("tiny", 1),
            negative=link("tiny", 1),
            latent_image=link("tiny", 2),
            seed=1,
            steps=STEPS,
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "digest": node("TestDigest", value=link("sample")),
    }


def digest(client: Client, **nodes: dict[str, Any]) -> str:
    outcome = client.run(sampled(**nodes))
    assert outcome.state == "success", client.logged()[-3000:]
    return outcome.texts("digest")


def test_an_fp8_model_samples_and_its_node_says_what_was_rounded(wide: Client):
    outcome = wide.run(sampled(model=fp8()))
    assert outcome.state == "success", wide.logged()[-3000:]
    assert "weights are in fp8; relative error of the weights" in outcome.texts("model")


def test_a_changed_file_is_loaded_again_and_an_unchanged_one_is_not(wide: Client):
    graph = sampled(model=fp8())
    wide.run(graph)
    graph["sample"]["inputs"]["seed"] = 2
    assert "model" not in wide.run(graph).executed()
    file = wide.base / "models" / "diffusion_models" / FILE
    weights = load_file(file)
    weights["head.head.bias"] = weights["head.head.bias"] + 1
    save_file(weights, file)
    assert "model" in wide.run(graph).executed()


def test_loras_of_a_list_are_merged(wide: Client):
    rows, columns = load_file(wide.base / "models" / "diffusion_models" / FILE)["blocks.0.ffn.0.weight"].shape
    name = "diffusion_model.blocks.0.ffn.0"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, columns), f"{name}.lora_B.weight": torch.ones(rows, 1)}
    save_file(tensors, wide.base / "models" / "loras" / "ones.safetensors")
    listed = node("MusubiLoraList", lora_name="ones.safetensors", strength=0.1)
    outcome = wide.run(sampled(list=listed, model=fp8(loras=link("list"))))
    assert outcome.state == "success", wide.logged()[-3000:]
    assert "1 tensor was changed by the LoRA before" in outcome.texts("model")
    assert outcome.texts("digest") != digest(wide, model=fp8())
    twice = node("MusubiLoraList", lora_name="ones.safetensors", strength=0.1, others=link("list"))
    failed = wide.run(sampled(list=listed, twice=twice, model=fp8(loras=link("twice"))))
    assert "merged twice" in failed.error()


def test_magcache_off_and_threshold_zero_give_the_picture_without_the_node(wide: Client):
    plain = digest(wide, model=fp8())
    assert digest(wide, model=fp8(), cache=magcache("model", enabled=False)) == plain
    assert digest(wide, model=fp8(), cache=magcache("model", threshold=0.0)) == plain
    assert digest(wide, model=fp8(), cache=magcache("model")) != plain


def test_magcache_says_what_it_will_skip_and_what_it_did(wide: Client):
    digest(wide, model=fp8(), cache=magcache("model", k=1))
    lines = [line for line in wide.logged().splitlines() if "MagCache" in line]
    will, did = lines[-2:]
    skipped = int(will.split("will skip ")[1].split()[0])
    assert f"skipped {2 * skipped} of {2 * STEPS} evaluations" in did and skipped > 0


def test_measured_ratios_are_saved_and_used(wide: Client):
    measuring = node("MusubiCalibrateMagCache", model=link("model"), name="mine", model_type="auto")
    assert digest(wide, model=fp8(), measure=measuring) == digest(wide, model=fp8())
    assert (wide.base / "output" / "musubi" / "magcache" / "mine.json").is_file()
    ratios = node("MusubiLoadMagCacheRatios", file="mine.json")
    digest(wide, model=fp8(), ratios=ratios, cache=magcache("model", threshold=1.0, ratios=link("ratios")))
    assert f"by the ratios wan t2v-1.3B, {STEPS} steps" in wide.logged()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("MusubiLoadFp8Model", model_name="nothing.safetensors"), "there is no 'nothing.safetensors'"),
        (node("MusubiLoadFp8Model", model_name="../../evil"), "there is no '../../evil'"),
    ],
)
def test_a_model_that_is_not_there_is_refused_before_anything_runs(wide: Client, bad: dict, message: str):
    assert message in wide.refusal(sampled(model=bad))


def test_a_file_that_is_no_network_is_refused_before_anything_runs(wide: Client):
    save_file({"a": torch.zeros(2)}, wide.base / "models" / "diffusion_models" / "other.safetensors")
    assert "is no network that this program knows" in wide.refusal(
        sampled(model=node("MusubiLoadFp8Model", model_name="other.safetensors"))
    )


def test_a_measurement_cannot_be_written_outside_of_its_folder(wide: Client):
    measuring = node("MusubiCalibrateMagCache", model=link("model"), name="../evil", model_type="auto")
    assert "without folders" in wide.refusal(sampled(model=fp8(), measure=measuring))


def test_comfyuis_own_trainer_takes_the_model(wide: Client):
    inputs = wide.get("/object_info/TrainLoraNode")["TrainLoraNode"]["input"]
    required = {
        name: about[1]["default"]
        for name, about in inputs["required"].items()
        if len(about) > 1 and "default" in about[1]
    }
    graph = {
        "model": fp8(),
        "tiny": node("TestTinyWan", file=FILE),
        "train": node(
            "TrainLoraNode",
            **{**required, "steps": 1, "rank": 2, "training_dtype": "fp32", "lora_dtype": "fp32"},
            model=link("model"),
            latents=link("tiny", 2),
            positive=link("tiny", 1),
        ),
    }
    outputs = wide.get("/object_info/TrainLoraNode")["TrainLoraNode"]["output"]
    graph["digest"] = node("TestDigest", value=link("train", outputs.index("LORA_MODEL")))
    outcome = wide.run(graph)
    if outcome.state == "error" and "comfy_kitchen.apply_rope1" in outcome.error():
        pytest.skip("this ComfyUI's trainer fails on every network that has rotary positions")
    assert outcome.state == "success", wide.logged()[-3000:]
