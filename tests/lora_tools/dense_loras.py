"""LoRA files for the tests of lora_tools, and what they mean as dense matrices."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file


def lora_file(path, layers, *, rank=4, alpha=2.0, seed=0, dtype=torch.float32, metadata=None, decay=0.7):
    """layers: {name: (outputs, inputs, *kernel)}. Singular values fall by about `decay`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        fall = decay ** torch.arange(rank)
        down = torch.randn(rank, inputs, *kernel, generator=generator)
        up = torch.randn(outputs, rank, generator=generator) * fall
        tensors[f"{name}.lora_down.weight"] = down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = up.reshape(outputs, rank, *[1] * len(kernel)).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def dense(path, name):
    """The change of one layer as a float64 matrix (o, i * k)."""
    tensors = load_file(path)
    down = tensors[f"{name}.lora_down.weight"].double().flatten(1)
    up = tensors[f"{name}.lora_up.weight"].double().flatten(1)
    alpha = tensors.get(f"{name}.alpha")
    return up @ down * (1.0 if alpha is None else float(alpha) / len(down))
