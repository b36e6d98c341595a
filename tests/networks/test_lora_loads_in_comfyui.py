"""What we save by default loads in a real ComfyUI with no key left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from musubi_core.networks.saving import lora_tensors

SCRIPT = """
import json, logging, sys
comfyui, folder = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.lora, comfy.model_detection, comfy.utils
left_over = []
logging.warning = lambda text, *args: left_over.append(text)
weights = comfy.utils.load_torch_file(f"{folder}/model.safetensors")
config = comfy.model_detection.model_config_from_unet(weights, "")
model = config.get_model(config.process_unet_state_dict(weights), "")
keys = comfy.lora.model_lora_keys_unet(model, {})
left_over.clear()
patches = comfy.lora.load_lora(comfy.utils.load_torch_file(f"{folder}/lora.safetensors"), keys)
print(json.dumps([len(patches), left_over]))
"""


def installations() -> list[Path]:
    """Folders of ComfyUI: those named in COMFYUI_PATH, else the usual places."""
    named = [Path(text) for text in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if text]
    usual = [Path.home() / "ComfyUI", Path.home() / "ComfyUI-0.8"]
    return [folder for folder in named or usual if (folder / "main.py").is_file()]


def python_of(comfyui: Path) -> str:
    own = [comfyui / "venv" / "bin" / "python", comfyui / "venv" / "Scripts" / "python.exe"]
    return str(next((path for path in own if path.is_file()), sys.executable))


@pytest.fixture(params=installations() or [None], ids=str)
def comfyui(request) -> Path:
    if request.param is None:
        pytest.skip("NOT TESTED: no ComfyUI found; set COMFYUI_PATH to its folder")
    return request.param


def load(comfyui: Path, folder: Path) -> tuple[int, list[str]]:
    """(layers that ComfyUI patches, its complaints)."""
    script = folder / "load.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [python_of(comfyui), str(script), str(comfyui), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    patches, left_over = json.loads(done.stdout.splitlines()[-1])
    return patches, left_over


def test_the_default_names_load_completely(comfyui, build, tiny_hunyuan, hunyuan_targets, tmp_path):
    network = build(tiny_hunyuan, targets=hunyuan_targets)
    save_file(tiny_hunyuan.state_dict(), tmp_path / "model.safetensors")
    save_file(lora_tensors(network), tmp_path / "lora.safetensors")
    assert load(comfyui, tmp_path) == (len(network.adapters), [])
