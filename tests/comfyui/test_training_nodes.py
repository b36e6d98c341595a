"""Training in a real ComfyUI: from pictures to a LoRA that its own nodes use."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_same_lora, with_command_line
from server import Client, Outcome
from stage import ARCH, STEPS, data_graph, link, model_node, node, place_pictures, train_graph

from musubi_core.data.video_writer import write_mp4
from musubi_core.files.tensors import read_tensors

CACHE_FILES = "*.safetensors"
LONG = 150  # steps, about two seconds


def lora_file(comfy: Client, name: str) -> Path:
    return comfy.base / "output" / "loras" / f"{name}.safetensors"


def census(comfy: Client) -> dict[str, Any]:
    """Tensors alive in the server, and its state. The second prompt is rid of the results of others."""
    for _ in range(2):
        outcome = comfy.run({"census": node("TestCensus", time=time.monotonic_ns() % 2**31)})
    return json.loads(outcome.texts("census"))


def assert_given_back(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Fewer tensors are fine: ComfyUI's own models were unloaded."""
    assert after["tensors"] <= before["tensors"]
    assert after["bytes"] <= before["bytes"]
    for same in ("random", "accelerate", "inference"):
        assert after[same] == before[same]


def caches(comfy: Client) -> dict[str, bytes]:
    """Every cache file of the dataset cats by name."""
    (folder,) = (comfy.base / "output" / "musubi_caches").glob("cats-*")
    return {path.name: path.read_bytes() for path in folder.glob(CACHE_FILES)}


def ok(comfy: Client, graph: Mapping[str, Any], **options: Any) -> Outcome:
    outcome = comfy.run(graph, **options)
    assert outcome.state == "success", comfy.logged()[-3000:]
    return outcome


def steps_done(event: Mapping[str, Any], name: str) -> int:
    """The step that the training of this name has told of, 0 for other events."""
    job = event["data"].get("job") or {}
    stage = job.get("stage") or {}
    return int(stage["done"]) if job.get("name") == name and stage.get("name") == "train" else 0


def shown_caches(comfy: Client) -> dict[str, Any]:
    """A graph that only makes caches, and shows what came of it."""
    shows = {f"{name} shown": node("PreviewAny", source=link(name, 1)) for name in ("latents", "texts")}
    return {**data_graph(comfy.files), **shows}


@pytest.fixture(scope="module")
def first(comfy: Client) -> Outcome:
    """One training, whose results several tests look at."""
    graph = train_graph(comfy.files, "first")
    graph["losses"] = node("TestShows", value=link("train", 3))
    return ok(comfy, graph)


def test_a_graph_trains_a_lora_into_comfyuis_folder(comfy: Client, first: Outcome):
    lora = lora_file(comfy, "first")
    assert f"{STEPS} of {STEPS} steps.\nLoRA: {lora}" == first.texts("train")
    assert any(name.endswith("lora_down.weight") for name in read_tensors(lora))
    assert "first.safetensors" in comfy.get("/models/loras")
    losses = json.loads(first.texts("losses"))["loss"]
    assert len(losses) == STEPS
    assert all(0 < loss < 10 for loss in losses)
    assert first.outputs["train"]["images"]  # the plot


def test_progress_is_told_while_it_trains(first: Outcome):
    bars = [one["data"] for one in first.events if one["type"] == "progress"]
    assert {"value": STEPS, "max": STEPS}.items() <= bars[-1].items()
    assert "musubi.job" in first.kinds()


def test_an_unchanged_graph_is_not_run_again(comfy: Client, first: Outcome):
    assert ok(comfy, train_graph(comfy.files, "first")).executed() == []


def test_caches_and_lora_equal_those_of_the_command_line_bit_for_bit(
    comfy: Client, first: Outcome, tmp_path: Path
):
    with_command_line(comfy, ARCH, comfy.files, tmp_path)
    graphs = caches(comfy)
    assert len(graphs) == 6
    assert graphs == {path.name: path.read_bytes() for path in (tmp_path / "caches").glob(CACHE_FILES)}
    assert_same_lora(lora_file(comfy, "first"), tmp_path / "cli.safetensors")


def test_a_cancelled_training_keeps_its_work_and_goes_on_exactly(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "cancelled", max_train_steps=LONG)
    before = census(comfy)

    async def cancel(client: Client, event: Mapping[str, Any]) -> None:
        if steps_done(event, "cancelled") >= 3:
            client.post("/interrupt", {})

    stopped = comfy.run(graph, on_event=cancel)
    assert "execution_interrupted" in stopped.kinds()
    assert "execution_error" not in stopped.kinds()
    folder = comfy.base / "output" / "musubi" / "cancelled"
    (state,) = folder.glob("*-state")
    assert 3 <= int(state.name.split("step")[1].split("-")[0]) < LONG
    assert list((comfy.base / "output" / "loras").glob("cancelled-step*.safetensors"))
    assert not lora_file(comfy, "cancelled").exists()
    after = census(comfy)
    assert_given_back(before, after)

    resumed = ok(comfy, graph)
    assert f"{LONG} of {LONG} steps." in resumed.texts("train")
    straight = ok(comfy, train_graph(comfy.files, "straight", max_train_steps=LONG))
    assert f"{LONG} of {LONG} steps." in straight.texts("train")
    assert_same_lora(lora_file(comfy, "cancelled"), lora_file(comfy, "straight"))


def test_stop_and_keep_ends_the_run_and_what_is_behind_it_runs(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "stopped", max_train_steps=2000)
    graph["digest"] = node("TestDigest", value=link("train", 0))
    asked: list[int] = []

    async def stop(client: Client, event: Mapping[str, Any]) -> None:
        if steps_done(event, "stopped") and not asked:
            asked.append(1)
            client.post(f"/musubi/jobs/{event['data']['job']['id']}", {"command": "stop"})

    outcome = ok(comfy, graph, on_event=stop)
    assert "steps, stopped." in outcome.texts("train")
    assert len(outcome.texts("digest")) == 64


def test_a_changed_caption_encodes_only_that_caption_again(comfy: Client, first: Outcome):
    before = caches(comfy)
    caption = comfy.base / "input" / "cats" / "1.txt"
    kept = caption.read_text(encoding="utf-8")
    caption.write_text("another picture", encoding="utf-8")
    outcome = ok(comfy, shown_caches(comfy))
    assert outcome.texts("latents") == "0 made, 3 were there already."
    assert outcome.texts("texts") == "1 made, 2 were there already."
    changed = {name for name, content in caches(comfy).items() if before[name] != content}
    assert len(changed) == 1
    assert next(iter(changed)).startswith("1_")
    caption.write_text(kept, encoding="utf-8")
    ok(comfy, shown_caches(comfy))
    assert caches(comfy) == before


def sampled(name: str, model: str, seed: int = 1) -> dict[str, Any]:
    """KSampler on a model of the graph, whose other inputs come from `base`, and a digest of its latent."""
    sampler = node(
        "KSampler",
        model=link(model),
        positive=link("base", 1),
        negative=link("base", 1),
        latent_image=link("base", 2),
        seed=seed,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return {name: sampler, f"digest {name}": node("TestDigest", value=link(name))}


def test_the_lora_changes_comfyuis_own_sampling_with_every_key_loaded(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "strong", max_train_steps=20)
    graph["optimizer"] = node("MusubiOptimizer", learning_rate=0.02)
    graph["train"]["inputs"]["optimizer"] = link("optimizer")
    graph["base"] = node("TestTinyWan", file=comfy.files["dit"])
    graph["patched"] = node(
        "LoraModelLoader", model=link("base"), lora=link("train"), strength_model=1.0, bypass=False
    )
    for name, model in (("plain", "base"), ("with lora", "patched")):
        graph |= sampled(name, model)
    outcome = ok(comfy, graph)
    assert outcome.texts("digest plain") != outcome.texts("digest with lora")
    assert "lora key not loaded" not in comfy.logged()
    by_file = {
        **graph,
        "patched": node("LoraLoaderModelOnly", model=link("base"), lora_name="strong.safetensors"),
    }
    by_file["patched"]["inputs"]["strength_model"] = 1.0
    again = ok(comfy, by_file)
    assert again.texts("digest with lora") == outcome.texts("digest with lora")
    assert "lora key not loaded" not in comfy.logged()


def test_a_failed_training_gives_all_memory_back(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "failing")
    graph["network"]["inputs"]["network_args"] = "verbose=perhaps"
    before = census(comfy)
    assert "verbose = 'perhaps'; expected true or false" in comfy.refusal(graph)
    graph["network"]["inputs"]["network_args"] = ""
    graph["optimizer"] = node("MusubiOptimizer", learning_rate=1e9, max_grad_norm=0.0)
    graph["train"]["inputs"] |= {"optimizer": link("optimizer"), "max_train_steps": 200}
    outcome = comfy.run(graph)
    assert outcome.state == "error"
    assert "not a finite number" in outcome.error()
    after = census(comfy)
    assert_given_back(before, after)
    assert after["inference"]
    base = {"base": node("TestTinyWan", file=comfy.files["dit"])}
    assert ok(comfy, {**base, **sampled("afterwards", "base", seed=7)}).texts("digest afterwards")


def test_a_finished_training_gives_all_memory_back(comfy: Client, first: Outcome):
    before = census(comfy)
    ok(comfy, train_graph(comfy.files, "given back"))
    assert_given_back(before, census(comfy))


def test_two_trainings_of_other_precision_do_not_see_each_other(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "half", max_train_steps=2)
    graph["memory"] = node("MusubiMemory", mixed_precision="bf16", gradient_checkpointing=True)
    graph["train"]["inputs"]["memory"] = link("memory")
    ok(comfy, graph)
    ok(comfy, train_graph(comfy.files, "after", run=1))
    assert_same_lora(lora_file(comfy, "first"), lora_file(comfy, "after"))


def test_samples_are_drawn_on_the_way_and_change_nothing(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "drawn")
    prompts = "a cat --w 64 --h 64 --s 1 --d 1"
    graph["prompts"] = node("MusubiSamplePrompts", prompts=prompts, sample_every_n_steps=2)
    graph["train"]["inputs"]["sampling"] = link("prompts")
    graph["shape"] = node("TestShows", value=link("train", 5))
    outcome = ok(comfy, graph)
    assert json.loads(outcome.texts("shape")) == [STEPS // 2, 64, 64, 3]
    assert len(list((comfy.base / "output" / "musubi" / "drawn" / "samples").iterdir())) >= STEPS // 2
    assert_same_lora(lora_file(comfy, "first"), lora_file(comfy, "drawn"))


def test_quick_start_makes_a_lora_from_a_folder(comfy: Client):
    place_pictures(comfy.base / "input" / "quick", 2, seed=3)
    files = {key: value for key, value in model_node(comfy.files, ARCH)["inputs"].items() if "." not in key}
    files |= {"architecture": "detect", "architecture.text_encoder": comfy.files["t5"]}
    inputs = {"folder": "quick", "output_name": "quick", "max_train_steps": 2, "resolution": 64, "seed": 1}
    outcome = ok(comfy, {"quick": node("MusubiQuickStart", **files, **inputs, memory_budget=8.0)})
    assert "2 of 2 steps." in outcome.texts("quick")
    assert any(name.endswith("lora_down.weight") for name in read_tensors(lora_file(comfy, "quick")))


def test_the_plan_is_told_before_anything_is_loaded(comfy: Client, first: Outcome):
    graph = train_graph(comfy.files, "planned")
    inputs = dict(graph.pop("train")["inputs"])
    outcome = ok(comfy, {**graph, "plan": node("MusubiPlanTraining", **inputs)})
    assert f"Plan for {ARCH}: {STEPS} steps" in outcome.texts("plan")


def test_datasets_of_all_kinds_are_one(comfy: Client, tmp_path: Path):
    folder = comfy.base / "input"
    (folder / "clips").mkdir()
    with (folder / "clips" / "a.mp4").open("wb") as file:
        write_mp4(file, np.zeros((20, 64, 64, 3), dtype=np.uint8), 16.0)
    (folder / "clips" / "a.txt").write_text("a clip", encoding="utf-8")
    line = {"image_path": str(folder / "cats" / "0.png"), "caption": "listed"}
    (folder / "all.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    table = f"[[datasets]]\nresolution = 64\nimage_directory = '{folder}/cats'\n"
    (folder / "all.toml").write_text(table, encoding="utf-8")
    graph = {
        "clips": node("MusubiVideoFolderDataset", folder="clips", resolution="64", target_frames="1 17"),
        "list": node("MusubiJsonlDataset", file="all.jsonl", media="pictures", resolution="64x64"),
        "file": node("MusubiDatasetFile", file="all.toml"),
    }
    sockets = {f"datasets.dataset{number}": link(name) for number, name in enumerate(graph)}
    graph["all"] = node("MusubiCombineDatasets", **sockets)
    graph["report"] = node("MusubiDatasetReport", dataset=link("all"), architecture=ARCH, thumbnails=0)
    text = ok(comfy, graph).texts("report")
    for words in ("1 of 1 files used, 2 samples", "1 of 1 files used, 1 samples", "3 of 3 files used"):
        assert words in text
    assert "All datasets: 6 samples per epoch." in text


def test_pictures_of_the_graph_are_trained_on(comfy: Client):
    graph = train_graph(comfy.files, "made", max_train_steps=1)
    graph["pictures"] = node("TestImages", count=2)
    graph["data"] = node(
        "MusubiImagesDataset",
        images=link("pictures"),
        captions=link("pictures", 1),
        name="made",
        resolution="64 64",
    )
    graph["report"] = node("MusubiDatasetReport", dataset=link("data"), architecture=ARCH, thumbnails=2)
    outcome = ok(comfy, graph)
    assert "2 of 2 files used" in outcome.texts("report")
    assert outcome.outputs["report"]["images"]
    assert lora_file(comfy, "made").is_file()
    files = sorted(path.name for path in (comfy.base / "output" / "musubi_datasets" / "made").iterdir())
    assert [name.split(".")[1] for name in files].count("png") == 2
