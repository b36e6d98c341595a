"""What we save by default loads in a real ComfyUI with no key left over, and changes what we trained."""

from __future__ import annotations

import pytest
import torch

from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.networks.lora import lora_delta
from musubi_core.networks.saving import lora_tensors

CODE = """
import json, logging, torch
import comfy.lora, comfy.model_detection, comfy.utils
folder = {folder!r}
weights = comfy.utils.load_torch_file(folder + "/model.safetensors")
config = comfy.model_detection.model_config_from_unet(weights, "")
model = config.get_model(config.process_unet_state_dict(weights), "")
keys = comfy.lora.model_lora_keys_unet(model, {{}})
left_over = []
logging.warning = lambda text, *args: left_over.append(text)
shapes = {{name: weight.shape for name, weight in model.state_dict().items()}}
patches = comfy.lora.load_lora(comfy.utils.load_torch_file(folder + "/lora.safetensors"), keys)
changes = {{
    name: comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], torch.zeros(shapes[name]), name)
    for name, patch in patches.items()
}}
comfy.utils.save_torch_file(changes, folder + "/changes.safetensors")
print(json.dumps([len(patches), left_over]))
"""


def test_the_default_names_load_completely(in_comfyui, build, tiny_hunyuan, hunyuan_targets, tmp_path):
    network = build(tiny_hunyuan, targets=hunyuan_targets, trained=True, network_alpha=3.0)
    write_tensors(tmp_path / "model.safetensors", tiny_hunyuan.state_dict())
    write_tensors(tmp_path / "lora.safetensors", lora_tensors(network))
    assert in_comfyui(CODE.format(folder=str(tmp_path))) == [len(network.adapters), []]

    changes = read_tensors(tmp_path / "changes.safetensors")
    adapter = network.adapters["double_blocks.1.txt_mlp.fc2"]
    delta = adapter.scale * lora_delta(dict(adapter.weights.named_parameters()), adapter.layer.shape)
    found = changes["diffusion_model.double_blocks.1.txt_mlp.2.weight"]
    torch.testing.assert_close(found, delta.detach(), rtol=1e-5, atol=1e-6)
    total = sum(float(change.double().norm()) for change in changes.values())
    ours = sum(float(a.scale * a.kind.norm(a.weights)) for a in network.adapters.values())
    assert total == pytest.approx(ours, rel=1e-5)
