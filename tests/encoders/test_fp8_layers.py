"""Weights become 8-bit while the file is read, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.encoders.loading import fill
from musubi_core.errors import BadFileError
from musubi_core.events import Note, Warned
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.tensors import write_tensors
from musubi_core.quantization.fp8 import CHUNK, FP8, dequantise, quantise, to_fp8
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.report import kind_of, report
from musubi_core.quantization.scheme import GRANULARITIES, QuantisationConfig, Scheme

CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in = nn.Linear(16, 128)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"attn_qkv": nn.Linear(128, 96), "mlp": nn.Linear(70, 32), "mod": nn.Linear(64, 64)}
            )
            for _ in range(2)
        )


def config(**changes: Any) -> QuantisationConfig:
    return QuantisationConfig(**{"targets": ("blocks",), "keep_precise": ("mod",), **changes})


def weights(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.to(dtype) for name, tensor in Model().state_dict().items()}


def load(path: Path, quantisation: QuantisationConfig | None, **how: Any) -> Model:
    with torch.device("meta"):
        model = Model()
    names = {name: name for name in model.state_dict()}
    with open_checkpoint(path) as checkpoint:
        fill(
            model,
            checkpoint,
            names,
            device=CPU,
            dtype_of=lambda name: torch.bfloat16,
            quantisation=quantisation,
            **how,
        )
    return model


def same(one: Tensor, other: Tensor) -> bool:
    if one.dtype == FP8:
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    return torch.equal(one, other)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "model.safetensors", weights())
    return tmp_path / "model.safetensors"


@pytest.fixture(params=["safetensors", "torch file", "shards"])
def any_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same weights in every form of checkpoint."""
    if request.param == "torch file":
        torch.save({"module": weights()}, tmp_path / "model.pt")
        return tmp_path / "model.pt"
    if request.param == "shards":
        items = list(weights().items())
        for number, part in enumerate((items[:5], items[5:]), 1):
            write_tensors(tmp_path / f"model-0000{number}-of-00002.safetensors", dict(part))
        return tmp_path
    write_tensors(tmp_path / "model.safetensors", weights())
    return tmp_path / "model.safetensors"


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Layers are read one after the other, or several at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_kind_of_file_gives_the_codes_of_its_weights(any_path, granularity, threads, monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 5 * 128)
    scheme = Scheme(granularity=granularity)
    model = load(any_path, config(scheme=scheme))
    layer = model.blocks[1]["attn_qkv"]
    made = quantise(weights()["blocks.1.attn_qkv.weight"], scheme)
    assert isinstance(layer, Fp8Linear)
    assert same(layer.weight, made.codes)
    assert torch.equal(layer.scale_weight, made.scale)
    assert layer.bias.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_covered_is_loaded_as_without_quantising(path):
    ours, plain = load(path, config()).state_dict(), load(path, None).state_dict()
    for name in ("img_in.weight", "blocks.0.mod.weight", "blocks.0.attn_qkv.bias"):
        assert same(ours[name], plain[name]) and ours[name].dtype == torch.bfloat16


def test_a_plain_cast_covers_the_same_layers_without_scales(path):
    model = load(path, config(scheme=None))
    layer = model.blocks[0]["attn_qkv"]
    assert same(layer.weight, to_fp8(weights()["blocks.0.attn_qkv.weight"]))
    assert layer.scale_weight is None
    assert not isinstance(model.blocks[0]["mod"], Fp8Linear)


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(granularity="tensor")])
def test_a_transform_comes_before_the_codes(path, scheme):
    """As base_weights does it: the sum is float32 and rounded once, to the codes."""
    change = torch.randn(96, 128, generator=torch.Generator().manual_seed(5)) * 1e-3

    def transform(name: str, tensor: Tensor) -> Tensor:
        return tensor.float() + change if name == "blocks.0.attn_qkv.weight" else tensor

    layer = load(path, config(scheme=scheme), transform=transform).blocks[0]["attn_qkv"]
    made = quantise(weights()["blocks.0.attn_qkv.weight"].float() + change, scheme)
    assert same(layer.weight, made.codes)
    assert torch.equal(layer.scale_weight, made.scale)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_file_with_the_very_scales_asked_for_is_taken_as_it_is(tmp_path, granularity):
    scheme = Scheme(granularity=granularity)
    stored = weights()
    for name in [name for name in stored if "blocks" in name and "mod" not in name and "weight" in name]:
        made = quantise(stored[name], scheme)
        stored |= {name: made.codes, f"{name.removesuffix('weight')}scale_weight": made.scale}
    write_tensors(tmp_path / "ours.safetensors", stored)
    model = load(tmp_path / "ours.safetensors", config(scheme=scheme))
    layer = model.blocks[0]["attn_qkv"]
    assert same(layer.weight, stored["blocks.0.attn_qkv.weight"])
    assert torch.equal(layer.scale_weight, stored["blocks.0.attn_qkv.scale_weight"])
    assert not layer.upcast
    assert not any(isinstance(event, Warned) for event in report(model, config(scheme=scheme)))


@pytest.fixture(params=["cast", "scaled"])
def fp8_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with fp8 weights of another form than is asked for."""
    stored = weights()
    name = "blocks.0.attn_qkv.weight"
    if request.param == "cast":
        stored[name] = to_fp8(stored[name])
    else:
        made = quantise(stored[name], Scheme(granularity="tensor"))
        stored |= {name: made.codes, "blocks.0.attn_qkv.scale_weight": made.scale}
    write_tensors(tmp_path / "fp8.safetensors", stored)
    return tmp_path / "fp8.safetensors"


def test_a_file_in_fp8_is_refused_with_the_way_out(fp8_path):
    with pytest.raises(BadFileError, match=r"fp8\.safetensors holds fp8 .*attn_qkv.*bf16.*--upcast_fp8"):
        load(fp8_path, config())


def test_a_file_in_fp8_is_rounded_again_when_asked_with_a_warning(fp8_path):
    asked = config(upcast_fp8=True)
    model = load(fp8_path, asked)
    layer = model.blocks[0]["attn_qkv"]
    assert layer.upcast and layer.scale_weight.shape == (96, 2, 1)
    warnings = [event.text for event in report(model, asked) if isinstance(event, Warned)]
    assert len(warnings) == 1 and "1 layers were fp8 already" in warnings[0]


def test_a_plain_cast_takes_a_file_in_fp8(fp8_path):
    layer = load(fp8_path, config(scheme=None)).blocks[0]["attn_qkv"]
    expected = weights()["blocks.0.attn_qkv.weight"].float()
    assert (layer.weight.float() - expected).norm() < 0.05 * expected.norm()


def test_a_weight_that_is_not_a_number_is_named_with_its_file(tmp_path, threads):
    stored = weights()
    stored["blocks.1.attn_qkv.weight"][3, 4] = float("nan")
    write_tensors(tmp_path / "bad.safetensors", stored)
    with pytest.raises(BadFileError, match=r"bad\.safetensors: blocks\.1\.attn_qkv\.weight holds NaN"):
        load(tmp_path / "bad.safetensors", config())


def test_the_error_is_told_by_kind_of_layer_and_the_fallback_by_name(path):
    notes = [event.text for event in report(load(path, config()), config()) if isinstance(event, Note)]
    assert notes[0].startswith("4 layers are in fp8, scaled; relative error of the weights: attention 2.")
    assert ", mlp 2." in notes[0]
    assert "2 layers are no multiple of 64" in notes[1]
    assert "blocks.0.mlp, blocks.1.mlp" in notes[1]


def test_the_error_told_is_the_error_made(path):
    layer = load(path, config()).blocks[0]["attn_qkv"]
    weight = weights()["blocks.0.attn_qkv.weight"].float()
    error = dequantise(layer.weight, layer.scale_weight, torch.float32) - weight
    assert layer.error == pytest.approx((error.norm() / weight.norm()).item(), rel=0.25)  # from one row


def test_a_file_that_shrinks_while_it_is_read_is_named(path, threads, monkeypatch):
    read_rows = Checkpoint.read_rows

    def cut_first(checkpoint: Checkpoint, *args: Any) -> Tensor:
        with path.open("r+b") as file:
            file.truncate(2000)
        return read_rows(checkpoint, *args)

    monkeypatch.setattr(Checkpoint, "read_rows", cut_first)
    with pytest.raises(BadFileError, match=r"model\.safetensors ends before its last tensor does"):
        load(path, config())


def test_a_packed_weight_is_refused_with_its_name(tmp_path):
    stored = weights()
    stored["blocks.0.mlp.weight"] = torch.zeros(32, 70, dtype=torch.uint8)
    write_tensors(tmp_path / "packed.safetensors", stored)
    with pytest.raises(BadFileError, match=r"packed\.safetensors: blocks\.0\.mlp\.weight .*uint8"):
        load(tmp_path / "packed.safetensors", config())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("double_blocks.3.img_attn_qkv", "attention"),
        ("double_blocks.3.img_mlp.fc1", "mlp"),
        ("blocks.0.ffn.0", "mlp"),
        ("blocks.0.ff.net.0.proj", "mlp"),
        ("blocks.0.self_attn.q", "attention"),
        ("single_blocks.0.linear1", "linear1"),
        ("blocks.0.offset", "offset"),
    ],
)
def test_kinds_of_layers(name, kind):
    assert kind_of(name) == kind


MEMORY = """
import json, sys, threading, time, torch
from pathlib import Path
from torch import nn
from musubi_core.encoders.loading import fill
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

FOLDER, WIDTH, COUNT, GRANULARITY = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Watch(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.over = 0, False
    def run(self):
        while not self.over:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.0005)

def load(count):
    with torch.device("meta"):
        layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count))
        model = nn.ModuleDict({"blocks": layers})
    names = {name: name for name in model.state_dict()}
    scheme = Scheme(granularity=GRANULARITY)
    with open_checkpoint(FOLDER / f"{count}.safetensors") as checkpoint:
        fill(model, checkpoint, names, device=torch.device("cpu"), dtype_of=lambda name: torch.bfloat16,
             quantisation=QuantisationConfig(targets=("blocks",), scheme=scheme))
    return model

torch.set_num_threads(1)
load(1)  # libraries and buffers are there before the measurement
before = anonymous()
watch = Watch()
watch.start()
model = load(COUNT)
watch.over = True
watch.join()
size = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps([watch.peak - before, size]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("granularity", ["block", "tensor"])
def test_loading_needs_little_more_memory_than_the_result(tmp_path, granularity):
    width, count = 3072, 12  # 226 MB in bf16
    weight = torch.randn(width, width).bfloat16()
    for layers in (1, count):
        tensors = {f"blocks.{number}.weight": weight for number in range(layers)}
        write_tensors(tmp_path / f"{layers}.safetensors", tensors)
    words = [str(tmp_path), str(width), str(count), granularity]
    done = subprocess.run([sys.executable, "-c", MEMORY, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, size = json.loads(done.stdout)
    # Memory that the first load gave back may be used again, so a little less than the size may be new.
    assert 0.9 * size < peak <= 1.15 * size + weight.nbytes
