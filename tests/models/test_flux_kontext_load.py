"""Loading FLUX.1 Kontext: every naming and container, and a clear word for every wrong file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flux_kontext_networks import make_inputs, make_network
from torch import Tensor, nn

from musubi_core.errors import BadFileError
from musubi_core.files.tensors import write_tensors
from musubi_core.models.flux_kontext.keys import stored_names
from musubi_core.models.flux_kontext.load import load
from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.spec import LoadRequest

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn


def request(path: Path, dtype: torch.dtype = torch.float32, **more: Any) -> LoadRequest:
    return LoadRequest(path=path, device=CPU, dtype=dtype, **more)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return make_network().state_dict()


def assert_same(loaded: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    found = loaded.state_dict()
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("naming", ["original", "comfyui new"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_every_naming_loads_with_other_weights_beside_it(state, tmp_path: Path, naming: str, prefix: str):
    names = stored_names(state, naming=naming, prefix=prefix)
    stored = {names[name]: tensor for name, tensor in state.items()}
    if prefix:
        stored["vae.decoder.conv_in.weight"] = torch.zeros(2)
    path = tmp_path / "network.safetensors"
    write_tensors(path, stored)
    assert_same(load(request(path)), state)


def test_a_loaded_network_computes_what_the_saved_one_did(state, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    write_tensors(path, state)
    inputs = make_inputs((6, 10))
    assert torch.equal(load(request(path))(**inputs), make_network()(**inputs))


def test_weights_get_the_dtype_of_the_run_unless_dit_dtype_says_otherwise(state, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    write_tensors(path, state)
    assert_same(load(request(path, torch.bfloat16)), state, torch.bfloat16)
    wished = TrainOptions(dit_dtype="fp16")
    assert_same(load(request(path, torch.bfloat16, options=wished)), state, torch.float16)


def test_a_plain_fp8_file_is_cast_up(state, tmp_path: Path):
    path = tmp_path / "network_fp8.safetensors"
    small = {
        name: tensor.to(FP8) if tensor.ndim == 2 and "blocks" in name else tensor
        for name, tensor in state.items()
    }
    write_tensors(path, small)
    assert_same(load(request(path, torch.bfloat16)), {n: t.float() for n, t in small.items()}, torch.bfloat16)


def test_comfyuis_scaled_fp8_file_is_multiplied_out(state, tmp_path: Path):
    path = tmp_path / "flux1-dev-kontext_fp8_scaled.safetensors"
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    expected = {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or "blocks" not in name:
            stored[name] = expected[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(FP8)
        stored[f"{name.removesuffix('weight')}scale_weight"] = scale
        stored[f"{name.removesuffix('weight')}scale_input"] = torch.ones(())
        expected[name] = stored[name].float() * scale
    write_tensors(path, stored)
    assert_same(load(request(path)), expected)


def test_missing_unknown_and_misshapen_weights_are_named(state, tmp_path: Path):
    name = "single_blocks.1.linear2.bias"
    for change, words in (
        ({own: tensor for own, tensor in state.items() if own != name}, rf"lacks 1 \({name}\)"),
        ({**state, "adapter.weight": torch.ones(1)}, r"has unknown 1 \(adapter.weight\)"),
        ({**state, name: torch.ones(5)}, rf"{name} has shape \[5\], expected \[64\]"),
    ):
        path = tmp_path / "network.safetensors"
        write_tensors(path, change)
        with pytest.raises(BadFileError, match=words) as caught:
            load(request(path))
        assert str(path) in str(caught.value)


def test_a_file_in_diffusers_naming_is_refused_with_the_right_one(tmp_path: Path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_tensors(path, {"single_transformer_blocks.0.proj_mlp.weight": torch.ones(2)})
    with pytest.raises(BadFileError, match=r"in diffusers naming.*flux1-kontext-dev\.safetensors"):
        load(request(path))
