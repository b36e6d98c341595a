"""Converting there and back is the identity, bit by bit, wherever nothing is multiplied into the weights."""

from __future__ import annotations

import json
import math
from itertools import permutations

import pytest
import torch
from lora_files import ARCHITECTURES, converted, lora_file, lora_tensors, tiny_layers, underscored, weights_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TARGETS = ("default", "comfyui", "diffusers", "peft", "other")
LYCORIS_TARGETS = ("default", "comfyui", "other")


def assert_same_file(path, other):
    """Tensors bit by bit, and what stands beside them about alpha."""
    old, new = load_file(weights_of(path)), load_file(weights_of(other))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert tensor.dtype == new[name].dtype, name
        assert torch.equal(tensor, new[name]), name
    if path.is_dir():
        assert json.loads((path / "adapter_config.json").read_text()) == json.loads(
            (other / "adapter_config.json").read_text()
        )
    settings = [header(one).get("lora_adapter_metadata") for one in (path, other)]
    assert settings[0] == settings[1]


def header(path):
    with safe_open(weights_of(path), "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("start", "through"), list(permutations(TARGETS, 2)), ids=" to ".join)
def test_every_pair_of_formats_gives_back_the_same_file(tmp_path, name, start, through):
    lossy = "other" in (start, through)
    options = {"dtype": torch.bfloat16, "alpha": 3.0} if lossy else {"alpha": 1.5}
    source = lora_file(tmp_path / "source.safetensors", name, **options)
    first = converted(source, tmp_path / "first.safetensors", start)
    between = converted(first, tmp_path / "between.safetensors", through)
    assert_same_file(first, converted(between, tmp_path / "again.safetensors", start))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["loha", "lokr", "full", "dora"])
@pytest.mark.parametrize("target", LYCORIS_TARGETS)
def test_other_kinds_come_back_too(tmp_path, name, kind, target):
    source = lora_file(tmp_path / "source.safetensors", name, kind=kind, alpha=3.0)
    between = converted(source, tmp_path / "between.safetensors", target)
    again = converted(between, tmp_path / "again.safetensors", "default", lora_key_format="musubi")
    assert_same_file(source, again)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_dora_comes_back_from_peft_as_a_column_of_magnitudes(tmp_path, name, target):
    source = lora_file(tmp_path / "source.safetensors", name, kind="dora")
    between = converted(source, tmp_path / "between.safetensors", target)
    magnitudes = [tensor for key, tensor in load_file(weights_of(between)).items() if "magnitude" in key]
    assert {tensor.ndim for tensor in magnitudes} == {1}
    again = converted(between, tmp_path / "again.safetensors", "default", lora_key_format="musubi")
    assert_same_file(source, again)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_musubi_names_are_the_default_form_with_its_own_key_format(tmp_path, name):
    source = lora_file(tmp_path / "source.safetensors", name)
    assert_same_file(
        source, converted(source, tmp_path / "b.safetensors", "default", lora_key_format="musubi")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_has_musubi_tuners_numbers_under_the_true_names(tmp_path, name, dtype):
    """Reference lora-and-fp8 3.1: both factors times the root of alpha / rank, in the same number format."""
    source = lora_file(tmp_path / "source.safetensors", name, dtype=dtype)
    stored, found = load_file(source), load_file(converted(source, tmp_path / "b.safetensors", "other"))
    expected = {}
    for layer in tiny_layers(name):
        base = underscored(layer)
        root = math.sqrt(float(stored[f"{base}.alpha"]) / 3)
        expected[f"diffusion_model.{layer}.lora_A.weight"] = stored[f"{base}.lora_down.weight"] * root
        expected[f"diffusion_model.{layer}.lora_B.weight"] = stored[f"{base}.lora_up.weight"] * root
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["hunyuan_video", "flux_kontext"])
@pytest.mark.parametrize("start", ["diffusers", "peft"])
@pytest.mark.parametrize("through", ["default", "comfyui"])
def test_parts_trained_apart_with_ranks_of_their_own_come_back(tmp_path, name, start, through):
    """q, k, v and mlp of ranks 1 to 5 at one scale; some parts are missing."""
    first = converted(lora_file(tmp_path / "source.safetensors", name), tmp_path / "a.safetensors", start)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    names = sorted({key.rpartition(".lora_")[0] for key in load_file(weights_of(first))})
    for number, base in enumerate(names):
        stored = {side: load_file(weights_of(first))[f"{base}.lora_{side}.weight"] for side in "AB"}
        if number % 5 == 4:
            continue
        rank = 1 + number % 5
        shape = rank, *stored["A"].shape[1:]
        tensors[f"{base}.lora_A.weight"] = torch.randn(shape, generator=generator)
        shape = stored["B"].shape[0], rank, *stored["B"].shape[2:]
        tensors[f"{base}.lora_B.weight"] = torch.randn(shape, generator=generator)
    apart = tmp_path / "apart.safetensors"
    save_file(tensors, apart, {"ss_base_model_version": name})
    fused = converted(apart, tmp_path / "fused.safetensors", through)
    assert len(load_file(fused)) < len(tensors) * 1.5, "nothing was joined"
    again = load_file(weights_of(converted(fused, tmp_path / "again.safetensors", start)))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_alpha_is_float32_and_metadata_tells_where_the_file_comes_from(tmp_path):
    tensors = lora_tensors("flux_kontext", dtype=torch.bfloat16)
    tensors = {key: t.to(torch.int64) if key.endswith("alpha") else t for key, t in tensors.items()}
    source = tmp_path / "whole numbers.safetensors"
    save_file(
        tensors, source, {"ss_base_model_version": "flux_kontext", "note": "mine", "sshs_model_hash": "x"}
    )
    out = converted(source, tmp_path / "new folder" / "b.safetensors", "comfyui")
    alphas = [tensor for key, tensor in load_file(out).items() if key.endswith("alpha")]
    assert {tensor.dtype for tensor in alphas} == {torch.float32} and {t.ndim for t in alphas} == {0}
    metadata = header(out)
    assert metadata["note"] == "mine" and metadata["musubi_core.converted_from"] == source.name
    assert len(metadata["sshs_model_hash"]) == 64 and len(metadata["sshs_legacy_hash"]) == 8


@pytest.mark.parametrize("target", TARGETS)
def test_hunyuan_loras_become_framepack_loras_and_come_back(tmp_path, target):
    """Names by the reference's table (lora-and-fp8 3.7), ranks as before."""
    tensors = {
        key: tensor
        for key, tensor in lora_tensors("hunyuan_video", alpha=3.0).items()
        if "_blocks_" in key and "refiner" not in key
    }
    source = tmp_path / "hunyuan.safetensors"
    save_file(
        tensors,
        source,
        {"ss_base_model_version": "hunyuan_video", "modelspec.architecture": "hunyuan-video/lora"},
    )
    there = converted(source, tmp_path / "fp.safetensors", target, target_architecture="framepack")
    found = load_file(weights_of(there))
    assert header(there)["ss_base_model_version"] == "framepack"
    if target == "default":
        bases = {key.partition(".")[0].removeprefix("lora_unet_") for key in found if "_blocks_0_" in key}
        double = [
            "attn_to_q",
            "attn_to_k",
            "attn_to_v",
            "attn_add_q_proj",
            "attn_add_k_proj",
            "attn_add_v_proj",
            "attn_to_out_0",
            "attn_to_add_out",
            "ff_net_0_proj",
            "ff_net_2",
            "ff_context_net_0_proj",
            "ff_context_net_2",
            "norm1_linear",
            "norm1_context_linear",
        ]
        single = ["attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp", "proj_out", "norm_linear"]
        assert bases == {f"transformer_blocks_0_{one}" for one in double} | {
            f"single_transformer_blocks_0_{one}" for one in single
        }
        rows = found["lora_unet_single_transformer_blocks_0_attn_to_k.lora_up.weight"]
        whole = tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"]
        assert torch.equal(rows, whole[len(rows) : 2 * len(rows)])
    back = converted(
        there,
        tmp_path / "back.safetensors",
        "default",
        architecture="framepack",
        target_architecture="hunyuan_video",
        lora_key_format="musubi",
    )
    assert_same_file(source, back)
    assert header(back)["ss_base_model_version"] == "hunyuan_video"
    assert header(back)["modelspec.architecture"] == "hunyuan-video/lora"
