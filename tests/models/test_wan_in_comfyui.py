"""Our networks against ComfyUI's own class: what is trained here is what KSampler will run."""

from __future__ import annotations

from pathlib import Path

import torch
from wan_networks import KINDS, make_inputs, make_network

from musubi_core.files.tensors import read_tensors, write_tensors

CODE = """
import json, logging, torch
import comfy.sd, comfy.utils
folder = {folder!r}
complaints = []
logging.warning = lambda text, *args: complaints.append(text % args if args else text)
found = []
for task in {tasks!r}:
    given = comfy.utils.load_torch_file(f"{{folder}}/{{task}}-inputs.safetensors")
    options = dict(dtype=torch.float32)
    model = comfy.sd.load_diffusion_model(f"{{folder}}/{{task}}.safetensors", options).model
    with torch.no_grad():
        velocity = model.diffusion_model(
            given["x"], given["t"], given["text"], clip_fea=given.get("pictures")
        )
    result = dict(velocity=velocity.float().contiguous())
    comfy.utils.save_torch_file(result, f"{{folder}}/{{task}}-velocity.safetensors")
    found.append([type(model).__name__, type(model.diffusion_model).__name__])
print(json.dumps([found, complaints]))
"""
TASKS = list(KINDS)


def test_comfyui_loads_our_names_and_computes_the_same_velocity(in_comfyui, tmp_path: Path):
    expected = {}
    for task in TASKS:
        # ComfyUI takes heads to be 128 wide, and text to be 4096.
        network = make_network(task, heads=1, text_width=4096)
        inputs = make_inputs(task, config=network.config)
        if task == "ti2v-5B":  # a time for every frame, the first one known
            inputs["t"] = torch.tensor([[0.0, 300.0, 300.0], [0.0, 773.5, 773.5]])
        expected[task] = network(**inputs)
        write_tensors(tmp_path / f"{task}.safetensors", network.state_dict())
        beside = [inputs.pop("beside")] if "beside" in inputs else []
        inputs["x"] = torch.cat([inputs["x"], *beside], dim=1)
        write_tensors(tmp_path / f"{task}-inputs.safetensors", inputs)

    found, complaints = in_comfyui(CODE.format(folder=str(tmp_path), tasks=TASKS))
    assert complaints == []
    assert [name for name, _ in found] == ["WAN21"] * 5 + ["WAN22"]
    assert {name for _, name in found} == {"WanModel"}
    for task, ours in expected.items():
        velocity = read_tensors(tmp_path / f"{task}-velocity.safetensors")["velocity"]
        assert velocity.std() > 0.1, task
        assert (ours - velocity).abs().max() < 5e-5, task
