"""Our network and our LoRAs in a real ComfyUI: what is trained here is what KSampler will run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from flux_kontext_networks import TINY, make_inputs, make_network
from torch import Tensor

from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.models.flux_kontext.model import FluxKontext
from musubi_core.models.flux_kontext.spec import SPEC
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.network import Network
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets

# Detection by file takes FLUX.1 to have its true number of heads, so the network is built from its sizes.
OPEN = """
import json, logging, torch
import comfy.lora, comfy.model_base, comfy.model_patcher, comfy.supported_models, comfy.utils
folder = {folder!r}
sizes = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim={pooled}, mlp_ratio=4.0,
    context_in_dim={text}, hidden_size={hidden}, num_heads={heads}, depth={double},
    depth_single_blocks={single}, axes_dim={axes}, theta=10000, qkv_bias=True, guidance_embed=True,
    txt_ids_dims=[],
)
config = comfy.supported_models.Flux(sizes)
config.set_inference_dtype(torch.float32, None)
config.custom_operations = None
model = comfy.model_base.Flux(config, device=torch.device("cpu"))
weights = comfy.utils.load_torch_file(folder + "/network.safetensors")
own = model.diffusion_model.state_dict()
if "single_blocks.0.norm.query_norm.scale" not in own:
    weights = {{name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in weights.items()}}
model.diffusion_model.load_state_dict(weights, strict=True)

def velocity(scene, placement):
    given = comfy.utils.load_torch_file(folder + f"/inputs {{scene}}.safetensors")
    options = dict(y=given["pooled"], guidance=given["guidance"], transformer_options={{}})
    options["ref_latents"] = [given[name] for name in sorted(given) if name.startswith("reference")]
    if placement == "index":  # the other one is what it does when nothing is said
        options["ref_latents_method"] = "index"
    with torch.no_grad():
        found = model.diffusion_model(given["x"], given["t"], given["text"], **options)
    return found.float().contiguous()
"""
VELOCITIES = """
found = {{scene: velocity(scene, placement) for scene, placement in {placements}.items()}}
comfy.utils.save_torch_file(found, folder + "/velocities.safetensors")
print(json.dumps(type(model.diffusion_model).__module__))
"""
LORA = """
keys = comfy.lora.model_lora_keys_unet(model, {{}})
left_over, counts, found = [], [], {{}}
logging.warning = lambda text, *args: left_over.append(text)
for file in {files}:
    patches = comfy.lora.load_lora(comfy.utils.load_torch_file(folder + "/" + file), keys)
    for strength in (0.0, 0.5):
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        counts.append(len(patcher.add_patches(patches, strength)))
        patcher.patch_model(device_to=torch.device("cpu"))
        found[f"{{file}} at {{strength}}"] = velocity("lora", "offset")
        patcher.unpatch_model()
found["no lora"] = velocity("lora", "offset")
comfy.utils.save_torch_file(found, folder + "/velocities.safetensors")
print(json.dumps([counts, left_over]))
"""
SCENES = {
    "one reference": ((8, 12), [(6, 10)], "offset"),
    "two references": ((8, 12), [(6, 10), (8, 4)], "offset"),
    "three references": ((8, 12), [(10, 6), (8, 4), (6, 6)], "offset"),
    "by index": ((8, 12), [(6, 10), (8, 4)], "index"),
    "odd latents": ((7, 9), [(5, 11), (3, 5)], "offset"),
}


def hand_over(folder: Path, network: FluxKontext, scenes: dict[str, dict[str, Any]]) -> str:
    """Write weights and inputs for the other process; the code that opens them there."""
    write_tensors(folder / "network.safetensors", network.state_dict())
    for scene, inputs in scenes.items():
        plain = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        references = {f"reference{number}": one for number, one in enumerate(inputs["references"])}
        write_tensors(folder / f"inputs {scene}.safetensors", plain | references)
    config = network.config
    return OPEN.format(
        folder=str(folder),
        pooled=config.pooled_width,
        text=config.text_width,
        hidden=config.hidden,
        heads=config.heads,
        double=config.double_blocks,
        single=config.single_blocks,
        axes=list(config.rope_axes),
    )


def test_comfyui_computes_the_same_velocity(in_comfyui, tmp_path: Path):
    network = make_network()
    scenes = {name: make_inputs(*references, size=size) for name, (size, references, _) in SCENES.items()}
    placements = {name: placement for name, (_, _, placement) in SCENES.items()}
    code = hand_over(tmp_path, network, scenes) + VELOCITIES.format(placements=placements)
    assert in_comfyui(code) == "comfy.ldm.flux.model"
    for name, theirs in read_tensors(tmp_path / "velocities.safetensors").items():
        ours = network(**scenes[name], placement=placements[name])
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=lambda text, name=name: name + text)


def trained(network: FluxKontext) -> Network:
    """A LoRA as after some training."""
    targets = Targets(classes=SPEC.adapt_classes, exclude=SPEC.adapt_exclude, comfyui=SPEC.lora_names.comfyui)
    generator = torch.Generator().manual_seed(4)
    config = NetworkConfig(network_dim=3, network_alpha=2.0)
    lora = build_network(network, config, targets, generator=generator)
    for parameter in lora.parameters():
        parameter.detach().normal_(std=0.1, generator=generator)
    return lora


def test_our_loras_load_completely_and_change_what_we_trained(in_comfyui, tmp_path: Path):
    network, inputs = make_network(), make_inputs((6, 10))
    base = network(**inputs)
    lora = trained(network)
    files = [f"{key_format}.safetensors" for key_format in ("comfyui", "musubi")]
    for file in files:
        write_tensors(tmp_path / file, lora_tensors(lora, None, file.partition(".")[0]))
    code = hand_over(tmp_path, network, {"lora": inputs}) + LORA.format(files=files)
    count = 8 * TINY.double_blocks + 2 * TINY.single_blocks
    assert in_comfyui(code) == [[count] * 4, []]

    lora.multiplier = 0.5
    lora.apply_to(network)
    with torch.no_grad():
        adapted = network(**inputs)
    assert (adapted - base).abs().max() > 0.1
    found = read_tensors(tmp_path / "velocities.safetensors")
    torch.testing.assert_close(found["no lora"], base, rtol=0, atol=2e-5)
    for file in files:
        assert torch.equal(found[f"{file} at 0.0"], found["no lora"])
        torch.testing.assert_close(found[f"{file} at 0.5"], adapted, rtol=0, atol=2e-5)
