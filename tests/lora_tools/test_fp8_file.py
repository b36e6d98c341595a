"""`quantize-fp8`: half the size, whole or absent, and the weights that training would have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musubi_core.cli.main import main
from musubi_core.config import build
from musubi_core.encoders.stored_scales import read_unscaled
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Note, Progress, Warned
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.header import read_header
from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.lora_tools.fp8_file import quantise_file
from musubi_core.lora_tools.fp8_file_config import Fp8FileConfig
from musubi_core.models.registry import architectures
from musubi_core.models.spec import ArchSpec, LoadRequest
from musubi_core.quantization.fp8 import to_fp8
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

CPU = torch.device("cpu")
OFFERED = [spec for spec in architectures() if spec.fp8_targets]


@pytest.fixture(scope="module", params=OFFERED, ids=lambda spec: spec.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ArchSpec, Path]:
    """Every architecture that offers fp8, with its tiny network."""
    spec: ArchSpec = request.param
    return spec, spec.write_tiny(tmp_path_factory.mktemp(spec.name), 0).dit


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OFFERED[0].write_tiny(tmp_path_factory.mktemp("model"), 0).dit


def config(source: Path, output: Path, **options: Any) -> Fp8FileConfig:
    values = {"input": source, "output": output, "device": "cpu", **options}
    return build(Fp8FileConfig, values, where="the test")


def load(spec: ArchSpec, path: Path, scheme: Scheme | None = None, **how: Any):
    quantisation = None
    if scheme is not None:
        quantisation = QuantisationConfig(
            targets=spec.fp8_targets, keep_precise=spec.keep_precise, scheme=scheme, **how
        )
    return spec.load(LoadRequest(path=path, device=CPU, dtype=torch.float32, quantisation=quantisation))


def same(one: Tensor, other: Tensor) -> bool:
    if one.element_size() == 1:
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    return torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "scheme"),
    [
        ({}, Scheme()),
        ({"fp8_granularity": "channel"}, Scheme(granularity="channel")),
        ({"fp8_format": "e5m2", "fp8_block_size": 32}, Scheme(format="e5m2", block=32)),
        ({"target": "comfyui"}, Scheme(granularity="tensor")),
    ],
    ids=str,
)
def test_training_on_the_file_is_training_on_the_model_quantised_while_it_is_read(
    model, tmp_path, options, scheme
):
    spec, source = model
    quantise_file(config(source, tmp_path / "fp8.safetensors", **options))
    ours, directly = load(spec, tmp_path / "fp8.safetensors", scheme), load(spec, source, scheme)
    state = ours.state_dict()
    for name, tensor in directly.state_dict().items():
        assert same(state[name], tensor), name
    assert sum(isinstance(module, Fp8Linear) for module in ours.modules()) > 4


def test_without_options_the_file_is_read_as_the_weights_it_stands_for(model, tmp_path):
    spec, source = model
    quantise_file(config(source, tmp_path / "fp8.safetensors"))
    plain, precise = load(spec, tmp_path / "fp8.safetensors"), load(spec, source)
    for name, tensor in precise.state_dict().items():
        error = (plain.state_dict()[name] - tensor).norm() / tensor.norm()
        assert error < 0.028, name


@pytest.mark.parametrize("target", ["musubi", "comfyui"])
def test_the_file_is_about_half_the_size_and_all_else_is_untouched(source, tmp_path, target):
    quantise_file(config(source, tmp_path / "fp8.safetensors", target=target))
    before, after = read_tensors(source), read_tensors(tmp_path / "fp8.safetensors")
    coded = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    assert coded and all("blocks." in name and "mod" not in name and "norm" not in name for name in coded)
    assert sum(before[name].nbytes for name in coded) == 2 * sum(after[name].nbytes for name in coded)
    for name in before.keys() - coded:
        assert torch.equal(before[name], after[name])
    assert set(before) <= set(after)


def test_our_form_tells_its_scheme(source, tmp_path):
    quantise_file(config(source, tmp_path / "fp8.safetensors"))
    header = read_header(tmp_path / "fp8.safetensors")
    assert header.metadata["quant"] == "block-fp8"
    assert header.metadata["block"] == "64"
    assert header.metadata["quant_format"] == "float8_e4m3fn"
    scales = [info for name, info in header.tensors.items() if name.endswith(".scale_weight")]
    assert scales and all(info.dtype == "float32" and len(info.shape) == 3 for info in scales)


def test_comfyuis_form_has_one_scale_and_a_description_for_each_weight(source, tmp_path):
    quantise_file(config(source, tmp_path / "fp8.safetensors", target="comfyui"))
    tensors = read_tensors(tmp_path / "fp8.safetensors")
    marks = [name for name in tensors if name.endswith(".comfy_quant")]
    assert marks
    for name in marks:
        layer = name.removesuffix(".comfy_quant")
        entries = json.loads(tensors[name].numpy().tobytes())
        assert entries == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        assert tensors[f"{layer}.weight_scale"].shape == ()
        assert tensors[f"{layer}.weight"].dtype == torch.float8_e4m3fn


def test_the_events_tell_progress_error_and_file(source, tmp_path):
    events: list[Any] = []
    quantise_file(config(source, tmp_path / "fp8.safetensors"), events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == list(range(1, steps[0].total + 1))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "relative error of the weights: attention 2." in notes[0] and "GB became" in notes[0]
    assert [event.path for event in events if isinstance(event, FileWritten)] == [
        tmp_path / "fp8.safetensors"
    ]


@pytest.mark.parametrize("after", [0, 3, 40])
def test_a_stopped_job_leaves_the_folder_as_it_was(source, tmp_path, after):
    output = tmp_path / "fp8.safetensors"
    output.write_bytes(b"an older file")
    seen: list[Any] = []
    done = quantise_file(config(source, output), seen.append, lambda: len(seen) >= after)
    assert done is None
    assert [path.name for path in tmp_path.iterdir()] == ["fp8.safetensors"]
    assert output.read_bytes() == b"an older file"


def test_a_weight_that_is_not_a_number_leaves_no_file(source, tmp_path):
    tensors = read_tensors(source)
    name = next(name for name in tensors if name.endswith("img_attn_qkv.weight"))
    tensors[name][0, 0] = float("inf")
    write_tensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(BadFileError, match=rf"bad\.safetensors: {name} holds NaN or infinity"):
        quantise_file(config(tmp_path / "bad.safetensors", tmp_path / "fp8.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.fixture
def plain_fp8(source, tmp_path) -> Path:
    tensors = {
        name: to_fp8(tensor) if tensor.ndim == 2 else tensor for name, tensor in read_tensors(source).items()
    }
    write_tensors(tmp_path / "cast.safetensors", tensors)
    return tmp_path / "cast.safetensors"


def test_an_input_in_fp8_is_refused(plain_fp8, tmp_path):
    with pytest.raises(BadFileError, match=r"cast\.safetensors holds fp8 .*bf16.*--upcast_fp8"):
        quantise_file(config(plain_fp8, tmp_path / "fp8.safetensors"))
    assert not (tmp_path / "fp8.safetensors").exists()


def test_an_input_in_fp8_is_rounded_again_when_asked_with_a_warning(plain_fp8, tmp_path):
    events: list[Any] = []
    quantise_file(config(plain_fp8, tmp_path / "fp8.safetensors", upcast_fp8=True), events.append)
    assert any("have been rounded a second time" in e.text for e in events if isinstance(e, Warned))
    with open_checkpoint(tmp_path / "fp8.safetensors") as again, open_checkpoint(plain_fp8) as first:
        for name in first.header:
            one, other = read_unscaled(again, name).float(), read_unscaled(first, name).float()
            assert (one - other).norm() <= 0.03 * other.norm()
        kept = [info.dtype for name, info in again.header.items() if "norm" not in name and "mod" in name]
        assert "float8_e4m3fn" not in kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "model.gguf"}, "ends in .safetensors"),
        ({"target": "comfyui", "fp8_granularity": "channel"}, "ComfyUI loads fp8 weights with one scale"),
        ({"architecture": "hunyan_video"}, "hunyuan_video"),
    ],
)
def test_what_cannot_be_meant_is_refused(source, tmp_path, options, message):
    values = {"output": tmp_path / "fp8.safetensors", **options}
    values["output"] = tmp_path / values["output"]
    with pytest.raises(ConfigError, match=message):
        quantise_file(config(source, **values))


def test_the_input_is_never_overwritten(source):
    with pytest.raises(ConfigError, match="output is the input itself"):
        quantise_file(config(source, source))


def test_the_command_line_runs_it(source, tmp_path, capsys):
    output = tmp_path / "a b ねこ.safetensors"
    words = ["quantize-fp8", "--input", str(source), "--output", str(output), "--device", "cpu"]
    assert main(words) == 0
    assert output.is_file()
    assert main([*words, "--upcast_fp8", "--target", "comfyui", "--fp8_granularity", "block"]) == 2
    assert "ComfyUI loads fp8 weights with one scale" in capsys.readouterr().err
