"""LoRA files with random numbers for the tiny network of every architecture, in musubi-tuner's form."""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.lora_tools.convert import convert_lora
from musubi_core.lora_tools.convert_config import ConvertConfig
from musubi_core.models.registry import SPECS, architecture

ARCHITECTURES = tuple(SPECS)
Shape = tuple[int, ...]


@cache
def tiny_layers(name: str) -> dict[str, Shape]:
    """Shapes of all weights that a LoRA can change: linear maps and convolutions."""
    with TemporaryDirectory() as folder:
        files = architecture(name).write_tiny(Path(folder), 0)
        with open_checkpoint(files.dit) as checkpoint:
            return {
                key.removesuffix(".weight"): info.shape
                for key, info in checkpoint.header.items()
                if key.endswith(".weight") and len(info.shape) > 1
            }


def underscored(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def factors(kind: str, shape: Shape, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors of one layer, by LyCORIS's names, without alpha."""

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    rows, columns, kernel = shape[0], prod(shape[1:]), shape[2:]
    points = [1] * len(kernel)
    if kind in ("lora", "dora"):
        tensors = {
            "lora_down.weight": noise(rank, *shape[1:]),
            "lora_up.weight": noise(rows, rank, *points),
        }
        return tensors | ({"dora_scale": noise(rows, 1, *points).abs()} if kind == "dora" else {})
    if kind == "loha":
        a = {f"hada_w{n}_a": noise(rows, rank) for n in (1, 2)}
        return a | {f"hada_w{n}_b": noise(rank, columns) for n in (1, 2)}
    if kind == "lokr":
        return {
            "lokr_w1": noise(rows // 4, 2),
            "lokr_w2_a": noise(4, rank),
            "lokr_w2_b": noise(rank, columns // 2),
        }
    return {"diff": noise(*shape), "diff_b": noise(rows)}


def lora_tensors(
    name: str,
    *,
    kind: str = "lora",
    rank: int = 3,
    alpha: float = 2.0,
    dtype: Any = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every layer of the tiny network. LoRA's alpha differs from layer to layer unless it equals the rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (layer, shape) in enumerate(tiny_layers(name).items()):
        if kind in ("loha", "lokr") and len(shape) > 2:
            continue
        for part, tensor in factors(kind, shape, rank, generator).items():
            tensors[f"{underscored(layer)}.{part}"] = tensor.to(dtype)
        if kind != "full":
            own = alpha if alpha == rank else alpha + number % 3
            tensors[f"{underscored(layer)}.alpha"] = torch.tensor(float(own))
    return tensors


def lora_file(path: Path, name: str, **options: Any) -> Path:
    metadata = {"ss_base_model_version": name, "ss_output_name": "cats", "sshs_model_hash": "old"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora_tensors(name, **options), path, metadata)
    return path


def converted(source: Path, output: Path, target: str, **options: Any) -> Path:
    """The new file or folder; peft gets no ending."""
    output = output.with_suffix("") if target == "peft" else output
    done = convert_lora(ConvertConfig(input=source, output=output, target=target, **options))
    assert done == output
    return output


def weights_of(path: Path) -> Path:
    return path / "adapter_model.safetensors" if path.is_dir() else path
