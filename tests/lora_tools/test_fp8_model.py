"""A network in memory with 8-bit weights: what is rounded, what is taken as it is, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.config import build
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Progress
from musubi_core.lora_tools.fp8_file import quantise_file
from musubi_core.lora_tools.fp8_file_config import Fp8FileConfig
from musubi_core.lora_tools.fp8_model import ModelTensors, ScaledWeight, check_fp8_model, read_fp8_model
from musubi_core.models.registry import SPECS, architecture
from musubi_core.quantization.scheme import Scheme

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architecture("wan").write_tiny(tmp_path_factory.mktemp("tiny"), 0).dit


def read(path: Path, **more) -> ModelTensors:
    found = read_fp8_model(path, more.pop("scheme", Scheme()), device=CPU, **more)
    assert found is not None
    return found


def scaled(tensors: ModelTensors) -> dict[str, ScaledWeight]:
    return {name: one for name, one in tensors.items() if isinstance(one, ScaledWeight)}


def lora_on(path: Path, layer: str, dit: Path) -> Path:
    rows, columns = load_file(dit)[f"{layer}.weight"].shape
    base = "lora_unet_" + layer.replace(".", "_")
    tensors = {
        f"{base}.lora_down.weight": torch.full((1, columns), 0.1),
        f"{base}.lora_up.weight": torch.ones(rows, 1),
        f"{base}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", [name for name in SPECS if architecture(name).fp8_targets])
@pytest.mark.parametrize("target", ["musubi", "comfyui"])
def test_a_file_that_quantize_fp8_made_gives_the_same_codes_as_its_source(name, target, tmp_path: Path):
    source = architecture(name).write_tiny(tmp_path, 0).dit
    options = {
        "input": source,
        "output": tmp_path / "fp8.safetensors",
        "target": target,
        "device": "cpu",
        "architecture": name,
    }
    quantise_file(build(Fp8FileConfig, options, where="the test"))
    scheme = Scheme(granularity="block" if target == "musubi" else "tensor")
    try:
        made, taken = read(source, scheme=scheme), read(tmp_path / "fp8.safetensors", scheme=Scheme(block=32))
    except BadFileError as error:  # where a file does not tell which of two networks it holds
        assert "Give --architecture" in str(error)
        return
    assert made.keys() == taken.keys() and scaled(made).keys() == scaled(taken).keys()
    assert scaled(made)
    for key, one in scaled(made).items():
        other = scaled(taken)[key]
        assert torch.equal(one.quantised.codes.view(torch.uint8), other.quantised.codes.view(torch.uint8)), (
            key
        )
        assert torch.equal(one.quantised.scale, other.quantised.scale), key
        assert one.scheme == other.scheme or one.scheme.granularity != "block", key


def test_a_lora_on_weights_that_are_fp8_already_is_refused_unless_allowed(dit: Path, tmp_path: Path):
    fp8 = tmp_path / "fp8.safetensors"
    options = {"input": dit, "output": fp8, "device": "cpu"}
    quantise_file(build(Fp8FileConfig, options, where="the test"))
    lora = lora_on(tmp_path / "lora.safetensors", "blocks.0.self_attn.q", dit)
    with pytest.raises(BadFileError, match="rounded a second time"):
        read(fp8, loras=[(lora, 1.0)])
    merged, plain = read(fp8, loras=[(lora, 1.0)], upcast_fp8=True), read(fp8)
    changed = [
        name
        for name, one in scaled(merged).items()
        if not torch.equal(one.quantised.scale, scaled(plain)[name].quantised.scale)
    ]
    assert changed == ["blocks.0.self_attn.q.weight"]


def test_a_lora_of_another_model_is_refused(dit: Path, tmp_path: Path):
    lora = lora_on(tmp_path / "lora.safetensors", "blocks.0.self_attn.q", dit)
    tensors = {key.replace("blocks_0", "blocks_77"): tensor for key, tensor in load_file(lora).items()}
    save_file(tensors, lora)
    with pytest.raises(BadFileError, match=r"layers that .+ does not have"):
        read(dit, loras=[(lora, 1.0)])


def test_reading_stops_when_asked_to(dit: Path):
    seen: list[Progress] = []
    stopped = read_fp8_model(
        dit,
        Scheme(),
        device=CPU,
        emit=lambda event: seen.append(event) if isinstance(event, Progress) else None,
        should_stop=lambda: len(seen) == 3,
    )
    assert stopped is None and len(seen) == 3


def test_a_file_that_is_no_network_is_refused_without_reading_weights(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadFileError, match="no network that this program knows"):
        check_fp8_model(tmp_path / "other.safetensors")


def test_an_architecture_without_fp8_is_refused(tmp_path: Path):
    names = [name for name in SPECS if not architecture(name).fp8_targets]
    if not names:
        pytest.skip("every architecture offers fp8")
    path = architecture(names[0]).write_tiny(tmp_path, 0).dit
    with pytest.raises(ConfigError, match="not available"):
        check_fp8_model(path)


def test_a_damaged_weight_is_refused_by_name(dit: Path, tmp_path: Path):
    weights = load_file(dit)
    name = "blocks.0.ffn.0.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(BadFileError, match=name):
        read(tmp_path / "nan.safetensors")
