"""Loading: prefixes, shards and 8-bit files, each weight once in memory, and a clear word for wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wan_networks import KINDS, make_inputs, make_network

from musubi_core.errors import BadFileError
from musubi_core.files.tensors import write_tensors
from musubi_core.models.spec import LoadRequest
from musubi_core.models.wan.load import load
from musubi_core.models.wan.options import TrainOptions

CPU = torch.device("cpu")


def request(path: Path, dtype: torch.dtype = torch.float32, **more: Any) -> LoadRequest:
    return LoadRequest(path=path, device=CPU, dtype=dtype, **more)


def state_of(task: str = "t2v-14B") -> dict[str, Tensor]:
    return make_network(task, heads=1).state_dict()


@pytest.fixture
def state() -> dict[str, Tensor]:
    return state_of()


def write(path: Path, state: dict[str, Tensor], prefix: str = "") -> Path:
    write_tensors(path, {prefix + name: tensor for name, tensor in state.items()})
    return path


def assert_same(loaded: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    found = loaded.state_dict()
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("task", KINDS)
def test_every_kind_of_network_loads_and_computes_what_the_saved_one_did(
    tmp_path: Path, task: str, prefix: str
):
    network = load(request(write(tmp_path / "network.safetensors", state_of(task), prefix)))
    assert_same(network, state_of(task))
    inputs = make_inputs(task)
    assert torch.equal(network(**inputs), make_network(task, heads=1)(**inputs))


@pytest.mark.parametrize("with_index", [True, False])
def test_a_folder_of_shards_loads(state, tmp_path: Path, with_index: bool):
    folder = tmp_path / "low_noise_model"
    folder.mkdir()
    names, places = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        write_tensors(folder / file, {name: state[name] for name in part})
        places |= dict.fromkeys(part, file)
    if with_index:
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    assert_same(load(request(folder)), state)


def test_weights_get_the_dtype_of_the_run_unless_dit_dtype_says_otherwise(state, tmp_path: Path):
    path = write(tmp_path / "network.safetensors", state)
    assert_same(load(request(path, torch.bfloat16)), state, torch.bfloat16)
    wished = TrainOptions(dit_dtype="fp16")
    assert_same(load(request(path, torch.bfloat16, options=wished)), state, torch.float16)


def test_a_plain_fp8_file_is_cast_up(state, tmp_path: Path):
    small = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 and "blocks" in name else tensor
        for name, tensor in state.items()
    }
    path = write(tmp_path / "network_fp8.safetensors", small)
    assert_same(load(request(path, torch.bfloat16)), {n: t.float() for n, t in small.items()}, torch.bfloat16)


@pytest.mark.parametrize(("suffix", "marker"), [("scale_weight", "scaled_fp8"), ("weight_scale", None)])
def test_a_scaled_fp8_file_is_multiplied_out(state, tmp_path: Path, suffix: str, marker: str | None):
    stored, expected = {}, {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or "blocks" not in name:
            stored[name] = expected[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{name.removesuffix('weight')}{suffix}"] = scale
        expected[name] = stored[name].float() * scale
    if marker:
        stored[marker] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    assert_same(load(request(write(tmp_path / "network_fp8_scaled.safetensors", stored))), expected)


def test_a_transform_sees_bare_names_before_the_cast(state, tmp_path: Path):
    doubles = {name: tensor.double() for name, tensor in state.items()}
    path = write(tmp_path / "network.safetensors", doubles, "model.diffusion_model.")
    seen: dict[str, torch.dtype] = {}

    def double_one(name: str, tensor: Tensor) -> Tensor:
        seen[name] = tensor.dtype
        return tensor * 2 if name == "blocks.1.ffn.0.weight" else tensor

    network = load(request(path, torch.bfloat16, transform=double_one))
    assert set(seen) == set(state)
    assert set(seen.values()) == {torch.float64}
    doubled = {**state, "blocks.1.ffn.0.weight": state["blocks.1.ffn.0.weight"] * 2}
    assert_same(network, doubled, torch.bfloat16)


def test_missing_unknown_and_misshapen_weights_are_named(state, tmp_path: Path):
    name = "blocks.1.ffn.2.bias"
    without = {own: tensor for own, tensor in state.items() if own != name}
    for change, words in (
        (without, rf"lacks 1 \({name}\)"),
        ({**state, "adapter.weight": torch.ones(1)}, r"has unknown 1 \(adapter.weight\)"),
        ({**state, name: torch.ones(5)}, rf"{name} has shape \[5\], expected \[128\]"),
    ):
        path = write(tmp_path / "network.safetensors", change)
        with pytest.raises(BadFileError, match=words) as caught:
            load(request(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["encoder.conv1.weight"], "is not a Wan network: it holds a VAE"),
        (["lora_unet_blocks_0_ffn_0.lora_down.weight"], "it holds a LoRA"),
        (["condition_embedder.time_proj.weight"], "in diffusers naming.*wan2.1_t2v_14B_bf16"),
    ],
)
def test_a_wrong_kind_of_checkpoint_is_refused_with_the_right_one(tmp_path: Path, names, words: str):
    path = write(tmp_path / "wrong.safetensors", {name: torch.ones(2) for name in names})
    with pytest.raises(BadFileError, match=words):
        load(request(path))
