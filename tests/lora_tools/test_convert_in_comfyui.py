"""Every converted file loads in a real ComfyUI with no key left over, and changes what the first one did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import converted, lora_file, tiny_layers, underscored
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.hunyuan_video.keys import comfyui_name
from musubi_core.models.registry import SPECS, architecture

OPEN = """
config = comfy.model_detection.model_config_from_unet(weights, "")
weights = config.process_unet_state_dict(weights)
model = config.get_model(weights, "")
"""
# Detection by file takes FLUX.1 to have its true number of heads, so the network is built from its sizes.
OPEN_FLUX = """
pooled, text = (weights[name + ".weight"].shape[1] for name in ("vector_in.in_layer", "txt_in"))
config = comfy.supported_models.Flux(dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=pooled, mlp_ratio=4.0,
    context_in_dim=text, hidden_size=128, num_heads=1, depth=2, depth_single_blocks=2, axes_dim=[16, 56, 56],
    theta=10000, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
))
config.set_inference_dtype(torch.float32, None)
config.custom_operations = None
model = comfy.model_base.Flux(config, device=torch.device("cpu"))
"""
CODE = """
import json, logging, torch
import comfy.lora, comfy.lora_convert, comfy.model_base, comfy.model_detection, comfy.model_patcher
import comfy.supported_models, comfy.utils
folder = {folder!r}
weights = comfy.utils.load_torch_file(folder + "/network.safetensors")
{open}
shapes = {{"diffusion_model." + name: weight.shape for name, weight in weights.items()}}
keys = comfy.lora.model_lora_keys_unet(model, {{}})
left_over = []
logging.warning = lambda text, *args: left_over.append(text)
logging.error = logging.warning
for file in {files}:
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(folder + "/" + file))
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patcher.add_patches(comfy.lora.load_lora(lora, keys), 1.0)
    changes = {{
        name: comfy.lora.calculate_weight(patches, torch.zeros(shapes[name]), name)
        for name, patches in patcher.patches.items()
    }}
    comfy.utils.save_torch_file(changes, folder + "/changes of " + file)
print(json.dumps(left_over))
"""
STARTS = {"flux_kontext": OPEN_FLUX}
COMFYUI_NAMES = {"hunyuan_video": comfyui_name}


def expected_changes(source: Path, name: str) -> dict[str, torch.Tensor]:
    """alpha / rank * up @ down, under ComfyUI's names of the weights."""
    stored, changes = load_file(source), {}
    rename = COMFYUI_NAMES.get(name, str)
    for layer, shape in tiny_layers(name).items():
        base = underscored(layer)
        if f"{base}.alpha" not in stored:
            continue
        down, up = (stored[f"{base}.lora_{side}.weight"].double().flatten(1) for side in ("down", "up"))
        delta = float(stored[f"{base}.alpha"]) / len(down) * (up @ down)
        changes["diffusion_model." + rename(f"{layer}.weight")] = delta.reshape(shape)
    return changes


def blocks_only(source: Path, output: Path) -> Path:
    """ComfyUI knows the original dotted names inside blocks only, which is where LoRAs are trained."""
    kept = {key: t for key, t in load_file(source).items() if "blocks_" in key and "refiner" not in key}
    with safe_open(source, "pt") as file:
        save_file(kept, output, file.metadata())
    return output


@pytest.mark.parametrize("name", SPECS)
def test_every_target_for_comfyui_loads_completely_and_changes_the_same(in_comfyui, tmp_path, name):
    files = architecture(name).write_tiny(tmp_path / "tiny", 0)
    with open_checkpoint(files.dit) as checkpoint:
        save_file({key: checkpoint.read(key) for key in checkpoint.header}, tmp_path / "network.safetensors")
    source = lora_file(tmp_path / "source.safetensors", name, alpha=1.5)
    blocks = blocks_only(source, tmp_path / "blocks.safetensors")
    made = [
        converted(source, tmp_path / f"{target}.safetensors", target) for target in ("default", "comfyui")
    ]
    made.append(converted(blocks, tmp_path / "other.safetensors", "other"))
    apart = converted(source, tmp_path / "apart.safetensors", "diffusers")
    made.append(converted(apart, tmp_path / "joined.safetensors", "comfyui"))
    if name == "flux_kontext":  # the one whose names in diffusers ComfyUI knows; it wants alpha = rank
        plain = lora_file(tmp_path / "plain.safetensors", name, alpha=3.0)
        made.append(converted(plain, tmp_path / "diffusers.safetensors", "diffusers"))
    code = CODE.format(folder=str(tmp_path), open=STARTS.get(name, OPEN), files=[path.name for path in made])
    assert in_comfyui(code) == []
    for path in made:
        origin = {"diffusers": tmp_path / "plain.safetensors", "other": blocks}.get(path.stem, source)
        expected, changes = expected_changes(origin, name), load_file(tmp_path / f"changes of {path.name}")
        assert changes.keys() == expected.keys(), path.name
        for key, change in expected.items():
            torch.testing.assert_close(changes[key].double(), change, rtol=1e-5, atol=1e-5)
