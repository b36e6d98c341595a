"""Loading: every naming and container, each weight once in memory, and a clear word for every wrong file."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_tensors
from musubi_core.models import loading
from musubi_core.models.hunyuan_video.keys import stored_names
from musubi_core.models.hunyuan_video.load import load
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import LoadRequest

CPU = torch.device("cpu")


def request(path: Path, dtype: torch.dtype = torch.float32, **more: Any) -> LoadRequest:
    return LoadRequest(path=path, device=CPU, dtype=dtype, **more)


def named(state: dict[str, Tensor], naming: str = "original", prefix: str = "") -> dict[str, Tensor]:
    names = stored_names(state, naming=naming, prefix=prefix)
    return {names[name]: tensor for name, tensor in state.items()}


@pytest.fixture
def state(hunyuan) -> dict[str, Tensor]:
    return hunyuan().state_dict()


def assert_same(loaded: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    found = loaded.state_dict()
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("naming", "prefix"),
    [
        ("original", ""),
        ("comfyui", "model.model."),
        ("comfyui", "model.diffusion_model."),
        ("comfyui new", ""),
        ("original", "diffusion_model."),
        ("original", "net."),
    ],
)
def test_every_naming_of_a_safetensors_file_loads(state, tmp_path: Path, naming: str, prefix: str):
    path = tmp_path / "network.safetensors"
    write_tensors(path, named(state, naming, prefix))
    assert_same(load(request(path)), state)


@pytest.mark.parametrize("nesting", ["module", "state_dict", None])
def test_an_official_pt_file_loads(state, tmp_path: Path, nesting: str | None):
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({nesting: state} if nesting else state, path)
    assert_same(load(request(path)), state)


def test_a_loaded_network_computes_what_the_saved_one_did(hunyuan, hunyuan_inputs, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    write_tensors(path, named(hunyuan().state_dict(), "comfyui", "model.model."))
    assert torch.equal(load(request(path))(**hunyuan_inputs()), hunyuan()(**hunyuan_inputs()))


def test_weights_get_the_dtype_of_the_run_unless_dit_dtype_says_otherwise(state, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    write_tensors(path, state)
    assert_same(load(request(path, torch.bfloat16)), state, torch.bfloat16)
    wished = TrainOptions(dit_dtype="fp16")
    assert_same(load(request(path, torch.bfloat16, options=wished)), state, torch.float16)


def test_a_plain_fp8_file_is_cast_up(state, tmp_path: Path):
    path = tmp_path / "network_fp8.safetensors"
    small = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 and "blocks" in name else tensor
        for name, tensor in state.items()
    }
    write_tensors(path, small)
    assert_same(load(request(path, torch.bfloat16)), {n: t.float() for n, t in small.items()}, torch.bfloat16)


@pytest.mark.parametrize(("suffix", "marker"), [("scale_weight", "scaled_fp8"), ("weight_scale", None)])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_scaled_fp8_file_is_multiplied_out(state, tmp_path: Path, suffix, marker, prefix: str):
    path = tmp_path / "network_fp8_scaled.safetensors"
    stored, expected = {}, {}
    for name, tensor in state.items():
        key = prefix + name
        if tensor.ndim != 2 or "blocks" not in name:
            stored[key] = expected[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{key.removesuffix('weight')}{suffix}"] = scale
        expected[name] = stored[key].float() * scale
    if marker:
        stored[prefix + marker] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    write_tensors(path, stored)
    assert_same(load(request(path)), expected)


def test_a_packed_4_bit_file_is_refused(state, tmp_path: Path):
    path = tmp_path / "network_nvfp4.safetensors"
    name = "single_blocks.0.linear2.weight"
    write_tensors(path, {**state, name: state[name].to(torch.uint8)})
    with pytest.raises(BadFileError, match=r"single_blocks.0.linear2.weight is stored as uint8"):
        load(request(path))


def test_a_transform_sees_original_names_before_the_cast(state, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    write_tensors(path, named({n: t.double() for n, t in state.items()}, "comfyui", "model.model."))
    seen: dict[str, torch.dtype] = {}

    def double_one(name: str, tensor: Tensor) -> Tensor:
        seen[name] = tensor.dtype
        return tensor * 2 if name == "single_blocks.0.linear1.weight" else tensor

    network = load(request(path, torch.bfloat16, transform=double_one))
    assert set(seen) == set(state)
    assert set(seen.values()) == {torch.float64}
    doubled = {**state, "single_blocks.0.linear1.weight": state["single_blocks.0.linear1.weight"] * 2}
    assert_same(network, doubled, torch.bfloat16)


class Counted:
    """A checkpoint in memory that knows how many of the tensors it gave out are alive."""

    path = Path("counted.safetensors")

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.header = {
            name: TensorInfo(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            for name, tensor in state.items()
        }
        self.alive = 0
        self.most = 0

    def read(self, name: str, *, own_memory: bool = False) -> Tensor:
        tensor = self.state[name].clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor.untyped_storage(), self._gone)
        return tensor

    def _gone(self) -> None:
        self.alive -= 1


@pytest.fixture
def counted(state, monkeypatch: pytest.MonkeyPatch) -> Counted:
    checkpoint = Counted(state)

    @contextmanager
    def opened(path: Path) -> Iterator[Counted]:
        yield checkpoint

    monkeypatch.setattr(loading, "open_checkpoint", opened)
    return checkpoint


def test_only_one_tensor_of_the_file_is_in_memory_besides_the_network(counted: Counted):
    network = load(request(counted.path, torch.bfloat16))
    assert counted.most <= 2, "the one just read, and the one before until its name is reused"
    assert counted.alive <= 1
    assert next(network.parameters()).dtype == torch.bfloat16


def test_a_tensor_that_needs_no_change_becomes_the_weight_itself(counted: Counted):
    network = load(request(counted.path, torch.float32))
    assert counted.alive == len(counted.state)
    del network
    assert counted.alive == 0


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_missing_unknown_and_misshapen_weights_are_named(state, tmp_path: Path):
    name = "single_blocks.1.linear2.bias"
    for change, words in (
        (without(state, name), rf"lacks 1 \({name}\)"),
        ({**state, "adapter.weight": torch.ones(1)}, r"has unknown 1 \(adapter.weight\)"),
        ({**state, name: torch.ones(5)}, rf"{name} has shape \[5\], expected \[64\]"),
    ):
        path = tmp_path / "network.safetensors"
        write_tensors(path, change)
        with pytest.raises(BadFileError, match=words) as caught:
            load(request(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["vae.decoder.conv_in.conv.weight"], "is not a HunyuanVideo network: it holds a VAE"),
        (["lora_unet_single_blocks_0_linear1.lora_down.weight"], "it holds a LoRA"),
        (["context_embedder.token_refiner.x"], "in diffusers naming.*mp_rank_00_model_states.pt"),
    ],
)
def test_a_wrong_kind_of_checkpoint_is_refused_with_the_right_one(tmp_path: Path, names, words: str):
    path = tmp_path / "wrong.safetensors"
    write_tensors(path, {name: torch.ones(2) for name in names})
    with pytest.raises(BadFileError, match=words):
        load(request(path))


def test_the_number_of_input_channels_must_be_the_one_asked_for(hunyuan, tmp_path: Path):
    path = tmp_path / "skyreels.safetensors"
    write_tensors(path, hunyuan(in_channels=32).state_dict())
    with pytest.raises(ConfigError, match=r"has 32 input channels.*Set --dit_in_channels 32"):
        load(request(path))
    assert load(request(path, options=TrainOptions(dit_in_channels=32))).config.in_channels == 32


def test_the_first_image_to_video_network_is_refused(hunyuan, tmp_path: Path):
    path = tmp_path / "i2v.safetensors"
    write_tensors(path, hunyuan(in_channels=33).state_dict())
    with pytest.raises(BadFileError, match=r"33 input channels.*Use the text-to-video network"):
        load(request(path))


def test_a_number_of_channels_that_no_network_has_is_refused():
    with pytest.raises(ConfigError, match=r"dit_in_channels is 20.*16.*32"):
        TrainOptions(dit_in_channels=20).check()
