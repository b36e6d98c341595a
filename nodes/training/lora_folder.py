"""Where finished LoRAs go, and how ComfyUI learns of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from musubi_core.files.replace import replace_file
from musubi_core.files.tensors import TensorFile

from ..folders import absolute

OUTPUT, MODELS = "output/loras", "models/loras"  # the same words on every machine, so workflows can be shared


def folders() -> dict[str, Path]:
    """ComfyUI's LoRA folders by the names that a graph has for them."""
    output = Path(folder_paths.get_output_directory()) / "loras"
    known = {OUTPUT: output, MODELS: Path(folder_paths.models_dir) / "loras"}
    for path in map(Path, folder_paths.get_folder_paths("loras")):
        if absolute(path) not in map(absolute, known.values()):
            known[path.as_posix()] = path
    return known


def lora_folder_input() -> Any:
    """One of ComfyUI's LoRA folders."""
    return io.Combo.Input(
        "lora_folder",
        options=list(folders()),
        default=OUTPUT,
        optional=True,
        tooltip="Where the finished LoRA goes. Load LoRA lists it from all of these folders.",
    )


def offer(loras: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Copy LoRAs of a run into one of ComfyUI's folders and have its lists read again."""
    copies = tuple(folder / lora.name for lora in loras)
    for lora, copy in zip(loras, copies, strict=True):
        with lora.open("rb") as source, replace_file(copy) as target:
            while block := source.read(1 << 20):
                target.write(block)
    folder_paths.filename_list_cache.pop("loras", None)
    return copies


def lora_model(path: Path) -> dict[str, Any]:
    """A LoRA as ComfyUI's LORA_MODEL: its tensors by name, on the CPU."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.names}
