"""The tiny HunyuanVideo encoders rewritten in the other namings and containers that are published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LDM_NAMES = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ("mid_block.attentions.0.to_", "mid.attn_1."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    (".resnets.", ".block."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    *((f"down_blocks.{level}.", f"down.{level}.") for level in range(4)),
    *((f"up_blocks.{level}.", f"up.{3 - level}.") for level in range(4)),
)


def comfy_org_vae(original: Path, target: Path) -> Path:
    """Comfy-Org's repackaged form: LDM naming, attention as 1x1x1 convolutions."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in load_file(original).items():
        attention = ".to_" in name and tensor.ndim == 2
        for old, new in LDM_NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor[:, :, None, None, None].clone() if attention else tensor
    save_file(renamed, target)
    return target


def official_vae(original: Path, target: Path) -> Path:
    """Tencent's form: a torch file, weights nested and prefixed."""
    weights = {f"vae.{name}": tensor for name, tensor in load_file(original).items()}
    torch.save({"state_dict": weights}, target)
    return target


def comfyui_text_encoder(folder: Path, target: Path) -> Path:
    """One file without config, as ComfyUI's text_encoders folder has it, with entries nobody asked for."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(2, 2)
    save_file(weights, target)
    return target
