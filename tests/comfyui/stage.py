"""What the tests in a real ComfyUI share: tiny models and pictures in its folders, graphs of our nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from musubi_core.models.registry import architecture
from musubi_core.models.spec import TinyFiles

ARCH = "wan"
STEPS = 4


def place_models(base: Path, name: str) -> dict[str, str]:
    """Put the tiny files of an architecture into ComfyUI's model folders. Returns their names by option."""
    tiny: TinyFiles = architecture(name).write_tiny(base / "models" / "made", 0)
    places = {"dit": ("diffusion_models", tiny.dit), "vae": ("vae", tiny.vae)}
    for option, value in tiny.options.items():
        if isinstance(value, Path):
            kind = "clip_vision" if option in ("clip", "image_encoder") else "text_encoders"
            places[option] = (kind, value)
    names = {}
    for option, (kind, path) in places.items():
        target = base / "models" / kind / name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(target)
        names[option] = f"{name}/{path.name}" + ("/model.safetensors" if target.is_dir() else "")
    return names


def place_pictures(folder: Path, count: int = 3, seed: int = 0) -> Path:
    """Noise with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    return folder


def link(node: str, slot: int = 0) -> list[Any]:
    return [node, slot]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def model_node(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """Training Model with the files of an architecture, its architecture named."""
    inputs: dict[str, Any] = {"dit": files["dit"], "vae": files["vae"], "architecture": name}
    for option, file in files.items():
        if option not in ("dit", "vae"):
            inputs[f"architecture.{option}"] = file
    return node("MusubiTrainingModel", **inputs)


def data_graph(files: Mapping[str, str], name: str = ARCH, folder: str = "cats") -> dict[str, Any]:
    """dataset -> both caches."""
    return {
        "data": node("MusubiImageFolderDataset", folder=folder, resolution="64 64"),
        "model": model_node(files, name),
        "latents": node("MusubiCacheLatents", dataset=link("data"), model=link("model")),
        "texts": node("MusubiCacheText", dataset=link("data"), model=link("model")),
    }


def train_graph(
    files: Mapping[str, str], output_name: str, *, name: str = ARCH, folder: str = "cats", **inputs: Any
) -> dict[str, Any]:
    """dataset -> caches -> Train LoRA, with a network of rank 2."""
    return {
        **data_graph(files, name, folder),
        "network": node("MusubiNetwork", network_dim=2),
        "train": node(
            "MusubiTrainLora",
            model=link("model"),
            latents=link("latents"),
            texts=link("texts"),
            network=link("network"),
            output_name=output_name,
            **{"max_train_steps": STEPS, "seed": 1, **inputs},
        ),
    }
