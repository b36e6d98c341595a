"""What a graph must not do, and what it is told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from server import Client
from stage import link, node, place_pictures, train_graph


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Pictures that no graph may see."""
    return place_pictures(tmp_path / "private")


def test_media_outside_of_comfyuis_folders_are_refused(comfy: Client, outside: Path):
    graph = train_graph(comfy.files, "safe")
    for folder in (str(outside), "../../../../../../../../../" + str(outside), "cats/../../../.."):
        graph["data"]["inputs"]["folder"] = folder
        assert "outside of ComfyUI's folders" in comfy.refusal(graph)
    graph["data"]["inputs"] |= {"folder": "cats", "control_directory": str(outside)}
    assert "outside of ComfyUI's folders" in comfy.refusal(graph)


def test_a_list_cannot_name_media_outside(comfy: Client, outside: Path):
    line = {"image_path": str(outside / "0.png"), "caption": "secret"}
    (comfy.base / "input" / "list.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    graph = train_graph(comfy.files, "safe")
    graph["data"] = node("MusubiJsonlDataset", file="list.jsonl", media="pictures", resolution="64 64")
    assert "outside of ComfyUI's folders" in comfy.refusal(graph)


def test_a_dataset_file_cannot_reach_outside(comfy: Client, outside: Path):
    file = comfy.base / "input" / "set.toml"
    graph = train_graph(comfy.files, "safe")
    graph["data"] = node("MusubiDatasetFile", file="set.toml")
    file.write_text(f"[[datasets]]\nimage_directory = '{outside}'\n", encoding="utf-8")
    assert "outside of ComfyUI's folders" in comfy.refusal(graph)
    cats = comfy.base / "input" / "cats"
    file.write_text(
        f"[[datasets]]\nimage_directory = '{cats}'\ncache_directory = '{outside}'\n", encoding="utf-8"
    )
    graph["data"]["inputs"]["caches"] = "where the file says"
    assert "outside of the folders that a workflow may write to" in comfy.refusal(graph)


@pytest.mark.parametrize("folder", ["../../../../up", "/etc/musubi", "../../input/cats"])
def test_caches_cannot_be_written_outside(comfy: Client, folder: str):
    graph = train_graph(comfy.files, "safe")
    graph["data"]["inputs"]["cache_directory"] = folder
    assert "may write to" in comfy.refusal(graph)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "C:\\x", "..", "a\x00b"])
def test_an_output_name_is_a_plain_name(comfy: Client, name: str):
    assert "give a plain file name" in comfy.refusal(train_graph(comfy.files, name))


@pytest.mark.parametrize("folder", ["/tmp", "output/../..", "nowhere"])
def test_a_lora_goes_only_into_a_lora_folder(comfy: Client, folder: str):
    assert "not in list" in comfy.refusal(train_graph(comfy.files, "x", lora_folder=folder)).lower()


@pytest.mark.parametrize("file", ["../../input/list.jsonl", "/etc/passwd", "nothing.safetensors"])
def test_model_files_come_from_comfyuis_lists(comfy: Client, file: str):
    graph = train_graph(comfy.files, "safe")
    graph["model"]["inputs"]["dit"] = file
    assert f"dit: there is no {file!r}" in comfy.refusal(graph)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("MusubiOptimizer", {"lr_warmup_steps": "10%"}, "lr_scheduler constant has no warm-up"),
        ("MusubiOptimizer", {"optimizer_args": "betas"}, "is not of the form key=value"),
        ("MusubiNetwork", {"network_module": "networks.lor"}, "is not a kind of network"),
        ("MusubiNetwork", {"network_dim": -1}, "smaller than min"),
        ("MusubiTimesteps", {"min_timestep": 900, "max_timestep": 100}, "is not below max_timestep"),
        ("MusubiTimesteps", {"qinglong_ratios": "80 7.5"}, "give three percentages"),
        ("MusubiTimesteps", {"qinglong_ratios": "many"}, "'many' is not one of numbers"),
        ("MusubiMemory", {"blocks_to_swap": 2}, "needs gradient checkpointing"),
        ("MusubiMemory", {"fp8_scaled": True}, "needs --fp8_base"),
        ("MusubiSaving", {"save_last_n_steps": 2}, "so nothing is saved"),
        ("MusubiTrainLora", {"max_train_steps": 0}, "smaller than min"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(comfy: Client, kind: str, inputs: dict, message: str):
    graph = train_graph(comfy.files, "bad")
    if kind == "MusubiTrainLora":
        graph["train"]["inputs"] |= inputs
    else:
        socket = kind.removeprefix("Musubi").lower()
        graph[socket] = node(kind, **inputs)
        graph["train"]["inputs"][socket] = link(socket)
    assert message in comfy.refusal(graph)


def test_a_prompt_cannot_read_pictures_outside(comfy: Client, outside: Path):
    graph = train_graph(comfy.files, "safe")
    graph["prompts"] = node("MusubiSamplePrompts", prompts=f"a cat --i {outside / '0.png'}")
    graph["train"]["inputs"]["sampling"] = link("prompts")
    assert "outside of ComfyUI's folders" in comfy.refusal(graph)


def test_a_tokenizer_is_a_model_folder_or_a_name(comfy: Client, outside: Path):
    graph = train_graph(comfy.files, "safe")
    for place in (str(outside), "../../..", "../input/cats"):
        graph["model"]["inputs"]["architecture.tokenizer"] = place
        assert "is neither a folder below" in comfy.refusal(graph)


def test_a_missing_folder_is_named_with_what_was_meant(comfy: Client):
    graph = train_graph(comfy.files, "safe")
    graph["data"]["inputs"]["folder"] = "catz"
    assert "there is no 'catz'. Did you mean cats?" in comfy.refusal(graph)


def test_a_missing_text_encoder_is_named(comfy: Client):
    graph = train_graph(comfy.files, "safe")
    del graph["model"]["inputs"]["architecture.t5"]
    assert "The text encoder UMT5-XXL was not given" in comfy.refusal(graph)


def test_a_file_that_is_no_network_is_refused(comfy: Client):
    graph = train_graph(comfy.files, "safe")
    place = comfy.base / "models" / "diffusion_models" / "vae.safetensors"
    place.write_bytes((comfy.base / "models" / "vae" / comfy.files["vae"]).read_bytes())
    graph["model"]["inputs"] = {"dit": "vae.safetensors", "vae": comfy.files["vae"], "architecture": "detect"}
    assert "is no network that this program knows" in comfy.refusal(graph)


def test_links_of_the_wrong_kind_are_refused(comfy: Client):
    graph = train_graph(comfy.files, "bad")
    graph["train"]["inputs"]["latents"] = link("data")
    assert "mismatch" in comfy.refusal(graph).lower()


def test_parts_of_different_datasets_do_not_train_together(comfy: Client):
    folder = place_pictures(comfy.base / "input" / "dogs", 1)
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    graph = train_graph(comfy.files, "mixed")
    graph["other"] = node("MusubiImageFolderDataset", folder="dogs", resolution="64 64")
    graph["texts"]["inputs"]["dataset"] = link("other")
    outcome = comfy.run(graph)
    assert "latents and texts were cached from different datasets" in outcome.error()
