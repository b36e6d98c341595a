"""`inspect` says of every form of a LoRA what a real ComfyUI then does with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_files import converted, lora_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_convert_in_comfyui import OPEN, STARTS

from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.lora_tools.inspect import description
from musubi_core.models.registry import SPECS, architecture

CODE = """
import json, torch
import comfy.lora, comfy.lora_convert, comfy.model_base, comfy.model_detection, comfy.supported_models
import comfy.utils
folder = {folder!r}
weights = comfy.utils.load_torch_file(folder + "/network.safetensors")
{open}
keys = comfy.lora.model_lora_keys_unet(model, {{}})
counts = {{}}
for file in {files}:
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(folder + "/" + file))
    bases = {{key.rsplit(".lora_", 1)[0] for key in lora if ".lora_" in key}}
    counts[file] = [sum(base in keys for base in bases), len(bases)]
print(json.dumps(counts))
"""


def renamed(source: Path, prefix: str, output: Path) -> Path:
    """The same file with another prefix before its names."""
    old = next(one for one in ("lora_unet_", "transformer.") if next(iter(load_file(source))).startswith(one))
    tensors = {}
    for key, tensor in load_file(source).items():
        base, part = key.removeprefix(old).split(".lora_") if ".lora_" in key else key[len(old) :].split(".a")
        base = base if prefix.endswith(".") else base.replace(".", "_")
        tensors[f"{prefix}{base}" + (".lora_" if ".lora_" in key else ".a") + part] = tensor
    with safe_open(source, "pt") as file:
        save_file(tensors, output, file.metadata())
    return output


@pytest.mark.parametrize("name", SPECS)
def test_what_comfyui_loads_is_what_was_said(in_comfyui, tmp_path, name):
    with open_checkpoint(architecture(name).write_tiny(tmp_path / "tiny", 0).dit) as checkpoint:
        save_file({key: checkpoint.read(key) for key in checkpoint.header}, tmp_path / "network.safetensors")
    source = lora_file(tmp_path / "default.safetensors", name, alpha=3.0)
    made = [source]
    for target, options in (
        ("comfyui", {}),
        ("diffusers", {}),
        ("other", {}),
        ("other", {"diffusers_prefix": "transformer"}),
        ("default", {"lora_key_format": "musubi"}),
    ):
        output = tmp_path / f"{len(made)}-{target}.safetensors"
        made.append(converted(source, output, target, **options))
    for prefix in ("lycoris_", "lora_transformer_"):
        made += [
            renamed(one, prefix, tmp_path / f"{prefix}{one.name}")
            for one in (source, tmp_path / "2-diffusers.safetensors")
        ]
    names = [path.name for path in made]
    counts = in_comfyui(CODE.format(folder=str(tmp_path), open=STARTS.get(name, OPEN), files=names))
    for path in made:
        loads, count = counts[path.name]
        said = "completely" if loads == count else f"{loads} of {count} changes" if loads else "no"
        assert f"loads in ComfyUI: {said}\n" in description(path), path.name
