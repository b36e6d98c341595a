"""Our networks and our LoRAs in a real ComfyUI: what is trained here is what KSampler will run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from wan_networks import KINDS, make_inputs, make_network

from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.models.wan.spec import SPEC
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.network import Network
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets

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
LORA = """
import json, logging, torch
import comfy.sd, comfy.utils
folder = {folder!r}
complaints = []
logging.warning = lambda text, *args: complaints.append(text % args if args else text)
found, counts = {{}}, []

def velocity(patcher):
    patcher.patch_model(device_to=torch.device("cpu"))
    with torch.no_grad():
        result = patcher.model.diffusion_model(
            given["x"], given["t"], given["text"], clip_fea=given.get("pictures")
        )
    patcher.unpatch_model()
    return result.float().contiguous()

for task in {tasks!r}:
    given = comfy.utils.load_torch_file(f"{{folder}}/{{task}}-inputs.safetensors")
    base = comfy.sd.load_diffusion_model(f"{{folder}}/{{task}}.safetensors", dict(dtype=torch.float32))
    for form in ("comfyui", "musubi"):
        lora = comfy.utils.load_torch_file(f"{{folder}}/{{task}}-{{form}}-lora.safetensors")
        for strength in (0.0, 0.5):
            patched, _ = comfy.sd.load_lora_for_models(base, None, lora, strength, 0.0)
            counts.append(len(patched.patches))
            found[f"{{task}} {{form}} {{strength}}"] = velocity(patched)
    found[f"{{task}} base"] = velocity(base)
comfy.utils.save_torch_file(found, f"{{folder}}/velocities.safetensors")
print(json.dumps([counts, complaints]))
"""
TASKS = list(KINDS)


def hand_over(folder: Path, task: str, network: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Write weights and inputs for the other process, which takes what stands beside as further channels."""
    write_tensors(folder / f"{task}.safetensors", network.state_dict())
    given = dict(inputs)
    beside = [given.pop("beside")] if "beside" in given else []
    given["x"] = torch.cat([given["x"], *beside], dim=1)
    write_tensors(folder / f"{task}-inputs.safetensors", given)


def test_comfyui_loads_our_names_and_computes_the_same_velocity(in_comfyui, tmp_path: Path):
    expected = {}
    for task in TASKS:
        # ComfyUI takes heads to be 128 wide, and text to be 4096.
        network = make_network(task, heads=1, text_width=4096)
        inputs = make_inputs(task, config=network.config)
        if task == "ti2v-5B":  # a time for every frame, the first one known
            inputs["t"] = torch.tensor([[0.0, 300.0, 300.0], [0.0, 773.5, 773.5]])
        expected[task] = network(**inputs)
        hand_over(tmp_path, task, network, inputs)

    found, complaints = in_comfyui(CODE.format(folder=str(tmp_path), tasks=TASKS))
    assert complaints == []
    assert [name for name, _ in found] == ["WAN21"] * 5 + ["WAN22"]
    assert {name for _, name in found} == {"WanModel"}
    for task, ours in expected.items():
        velocity = read_tensors(tmp_path / f"{task}-velocity.safetensors")["velocity"]
        assert velocity.std() > 0.1, task
        assert (ours - velocity).abs().max() < 5e-5, task


def trained(network: nn.Module) -> Network:
    """A LoRA as after some training."""
    targets = Targets(classes=SPEC.adapt_classes, exclude=SPEC.adapt_exclude, comfyui=SPEC.lora_names.comfyui)
    generator = torch.Generator().manual_seed(4)
    config = NetworkConfig(network_dim=3, network_alpha=2.0)
    lora = build_network(network, config, targets, generator=generator)
    for parameter in lora.parameters():
        parameter.detach().normal_(std=0.1, generator=generator)
    return lora


def test_our_loras_load_completely_and_change_what_we_trained(in_comfyui, tmp_path: Path):
    base, adapted, layers = {}, {}, []
    for task in TASKS:
        network = make_network(task, heads=1, text_width=4096)
        inputs = make_inputs(task, config=network.config)
        if task == "ti2v-5B":
            inputs["t"] = torch.tensor([[300.0] * 3, [773.5] * 3])
        hand_over(tmp_path, task, network, inputs)
        lora = trained(network)
        for form in ("comfyui", "musubi"):
            write_tensors(tmp_path / f"{task}-{form}-lora.safetensors", lora_tensors(lora, None, form))
            layers += [len(lora.adapters)] * 2
        base[task] = network(**inputs)
        lora.multiplier = 0.5
        lora.apply_to(network)
        with torch.no_grad():
            adapted[task] = network(**inputs)

    assert in_comfyui(LORA.format(folder=str(tmp_path), tasks=TASKS)) == [layers, []]
    found = read_tensors(tmp_path / "velocities.safetensors")
    for task in TASKS:
        assert (adapted[task] - base[task]).abs().max() > 0.05, task
        assert (found[f"{task} base"] - base[task]).abs().max() < 5e-5, task
        for form in ("comfyui", "musubi"):
            assert torch.equal(found[f"{task} {form} 0.0"], found[f"{task} base"]), task
            assert (found[f"{task} {form} 0.5"] - adapted[task]).abs().max() < 5e-5, (task, form)
