"""`merge-lora --fp8`: the merged model in 8 bits. Oracle: quantize-fp8 of the merged model in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dense_loras import lora_file
from lora_files import lora_file as lora_of_all_layers
from safetensors.torch import load_file, save_file

from musubi_core.config import build
from musubi_core.encoders.stored_scales import HELPERS, read_unscaled
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Note, Progress
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.header import read_header
from musubi_core.lora_tools.fp8_file import quantise_file
from musubi_core.lora_tools.fp8_file_config import Fp8FileConfig
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.registry import architecture, architectures

OFFERED = [spec.name for spec in architectures() if spec.fp8_targets]


@pytest.fixture(scope="module", params=OFFERED)
def model(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """Name, tiny network and a LoRA for every layer of it."""
    folder = tmp_path_factory.mktemp(request.param)
    dit = architecture(request.param).write_tiny(folder / "model", 0).dit
    return request.param, dit, lora_of_all_layers(folder / "lora.safetensors", request.param)


def merged(model, output: Path, listen=lambda event: None, stop=lambda: False, **options):
    name, dit, lora = model
    config = MergeConfig(lora_weight=(lora,), output_file=output, dit=dit, architecture=name, **options)
    return merge_lora(config, listen, stop)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("target", ["musubi", "comfyui"])
def test_each_sum_is_rounded_once_as_quantize_fp8_rounds_it(model, tmp_path, target):
    merged(model, tmp_path / "fp32.safetensors", save_precision="fp32")
    options = {
        "input": tmp_path / "fp32.safetensors",
        "output": tmp_path / "expected.safetensors",
        "target": target,
        "architecture": model[0],
    }
    quantise_file(build(Fp8FileConfig, options, where="the test"))
    events: list = []
    merged(model, tmp_path / "found.safetensors", events.append, fp8=target)
    found, expected = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "expected.safetensors")
    original = read_header(model[1]).tensors if model[1].suffix == ".safetensors" else {}
    assert found.keys() == expected.keys()
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in found.values())
    for key, tensor in expected.items():
        if tensor.dtype == torch.float8_e4m3fn or key.endswith(HELPERS):
            assert same(found[key].reshape(-1), tensor.reshape(-1)), key
        else:
            assert torch.equal(found[key], tensor.to(found[key].dtype)), key
            assert key not in original or str(found[key].dtype) == f"torch.{original[key].dtype}"
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == len(found)
    assert any("weights are in fp8" in event.text for event in events if isinstance(event, Note))
    assert [event.path.name for event in events if isinstance(event, FileWritten)] == ["found.safetensors"]
    metadata = read_header(tmp_path / "found.safetensors").metadata
    assert metadata["musubi_core.merged"] == "lora.safetensors 1"
    assert (metadata.get("quant") == "block-fp8") == (target == "musubi")


@pytest.mark.parametrize("after", [0, 1, 30])
def test_a_stop_leaves_the_older_file(model, tmp_path, after):
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"older")
    seen: list = []
    assert merged(model, output, seen.append, lambda: len(seen) >= after, fp8="musubi") == ()
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"] and output.read_bytes() == b"older"


def test_a_model_that_is_fp8_already_and_contradictions_are_refused(model, tmp_path):
    merged(model, tmp_path / "fp8.safetensors", fp8="musubi")
    twice = (model[0], tmp_path / "fp8.safetensors", model[2])
    with pytest.raises(BadFileError, match=r"rounded a second time.*leave out --fp8"):
        merged(twice, tmp_path / "out.safetensors", fp8="comfyui")
    merged(twice, tmp_path / "bf16.safetensors")
    with pytest.raises(ConfigError, match="takes the place of save_precision"):
        merged(model, tmp_path / "out.safetensors", fp8="comfyui", save_precision="bf16")
    with pytest.raises(ConfigError, match="needs --dit"):
        merge_lora(
            MergeConfig(lora_weight=(model[2],), output_file=tmp_path / "out.safetensors", fp8="comfyui")
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_a_sum_that_is_not_finite_is_named_and_leaves_no_file(model, tmp_path):
    name, dit, lora = model
    tensors = load_file(lora)
    layer = next(key for key in tensors if "blocks_0" in key and key.endswith("lora_up.weight"))
    tensors[layer] = torch.full_like(tensors[layer], 3e38)
    save_file(tensors, tmp_path / "huge.safetensors")
    with pytest.raises(BadFileError, match="NaN or infinity"):
        merged((name, dit, tmp_path / "huge.safetensors"), tmp_path / "out" / "m.safetensors", fp8="musubi")
    assert list((tmp_path / "out").iterdir()) == []


COMFYUI = """
import json, logging, torch
import comfy.sd, comfy.utils
folder = {folder!r}
complaints = []
logging.warning = lambda text, *args: complaints.append(text % args if args else text)
patcher = comfy.sd.load_diffusion_model(folder + "/out.safetensors", dict(dtype=torch.float32))
found = {{}}
for name, module in patcher.model.diffusion_model.named_modules():
    weight = getattr(module, "weight", None)
    if hasattr(weight, "_qdata"):
        found[name + ".weight"] = weight.dequantize().float().contiguous()
comfy.utils.save_torch_file(found, folder + "/found.safetensors")
print(json.dumps([len(found), complaints]))
"""


def test_comfyui_loads_the_merged_model_in_fp8(in_comfyui, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden": 128, "heads": 1, "double_blocks": 2, "single_blocks": 2, "mlp_width": 512}
    weights = HunyuanVideo(HunyuanVideoConfig(**sizes, text_width=32)).state_dict()
    save_file({key: tensor.bfloat16() for key, tensor in weights.items()}, tmp_path / "model.safetensors")
    shapes = {
        f"lora_unet_single_blocks_1_linear{n}": tuple(weights[f"single_blocks.1.linear{n}.weight"].shape)
        for n in (1, 2)
    }
    lora = lora_file(tmp_path / "lora.safetensors", shapes)
    merge_lora(
        MergeConfig(
            lora_weight=(lora,),
            output_file=tmp_path / "out.safetensors",
            dit=tmp_path / "model.safetensors",
            fp8="comfyui",
        )
    )
    count, complaints = in_comfyui(COMFYUI.format(folder=str(tmp_path)))
    with open_checkpoint(tmp_path / "out.safetensors") as file:
        marked = [key for key in file.header if key.endswith(".comfy_quant")]
        assert (count, complaints) == (len(marked), [])
        found = load_file(tmp_path / "found.safetensors")
        for n in (1, 2):
            key = f"single_blocks.1.linear{n}.weight"
            torch.testing.assert_close(found[key], read_unscaled(file, key), rtol=1e-6, atol=0)
