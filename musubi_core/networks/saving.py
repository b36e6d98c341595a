"""The tensors of a LoRA file. Writing them, and their metadata, is the caller's business."""

from __future__ import annotations

import torch
from torch import Tensor

from musubi_core.networks.naming import file_name
from musubi_core.networks.network import Network


def lora_tensors(
    network: Network, dtype: torch.dtype | None = None, key_format: str = "comfyui"
) -> dict[str, Tensor]:
    """{key: CPU tensor, detached from training} for every adapter, in the model's order.

    dtype: of the weights, None keeps float32; alpha is always a float32 scalar, because 37.3 in bfloat16 is
    37.25. key_format: "comfyui" (all keys load in ComfyUI) or "musubi" (musubi-tuner's names).
    """
    tensors: dict[str, Tensor] = {}
    for name, adapter in network.adapters.items():
        base = file_name(name, key_format, network.targets.comfyui)
        for part, parameter in adapter.weights.named_parameters():
            stored = parameter.detach().to("cpu", dtype or parameter.dtype, copy=True)
            tensors[f"{base}.{part}"] = stored.contiguous()
        tensors[f"{base}.alpha"] = torch.tensor(adapter.alpha, dtype=torch.float32)
    return tensors
