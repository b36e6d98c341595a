"""Our network against ComfyUI's own class: what is trained here is what KSampler will run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.models.hunyuan_video.keys import stored_names

CODE = """
import json, logging, torch
import comfy.sd, comfy.utils
folder = {folder!r}
complaints = []
logging.warning = lambda text, *args: complaints.append(text % args if args else text)
options = dict(dtype=torch.float32)
network = comfy.sd.load_diffusion_model(folder + "/network.safetensors", options).model.diffusion_model
given = comfy.utils.load_torch_file(folder + "/inputs.safetensors")
with torch.no_grad():
    velocity = network(given["x"], given["t"], given["text"], y=given["pooled"], guidance=given["guidance"])
comfy.utils.save_torch_file({{"velocity": velocity.float().contiguous()}}, folder + "/velocity.safetensors")
print(json.dumps([type(network).__name__, complaints]))
"""


def test_comfyui_loads_our_names_and_computes_the_same_velocity(
    in_comfyui, hunyuan, hunyuan_config, hunyuan_inputs, tmp_path: Path
):
    # ComfyUI tells the network by heads of 128 and pooled text of 768.
    config = replace(hunyuan_config, hidden=128, heads=1, mlp_width=512, pooled_width=768)
    network = hunyuan(config=config)
    state = network.state_dict()
    names = stored_names(state, naming="comfyui", prefix="")
    write_tensors(tmp_path / "network.safetensors", {names[name]: tensor for name, tensor in state.items()})

    # It has no mask for text and multiplies the guidance by 1000 itself.
    inputs = hunyuan_inputs(lengths=(9,), config=config)
    theirs = {
        **{name: inputs[name] for name in ("x", "t", "pooled")},
        "text": inputs["text"][:, :9].contiguous(),
        "guidance": inputs["guidance"] / 1000,
    }
    write_tensors(tmp_path / "inputs.safetensors", theirs)

    assert in_comfyui(CODE.format(folder=str(tmp_path))) == ["HunyuanVideo", []]
    velocity = read_tensors(tmp_path / "velocity.safetensors")["velocity"]
    assert velocity.std() > 0.1
    torch.testing.assert_close(network(**inputs), velocity, rtol=0, atol=2e-5)
