"""The tiny Wan VAEs rewritten in the other namings and containers that are published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from musubi_core.models.wan.vae_keys import diffusers_name


def diffusers_file(original: Path, target: Path) -> Path:
    """As in the `vae` folder of Wan-AI's repositories for diffusers."""
    save_file({diffusers_name(name): tensor for name, tensor in load_file(original).items()}, target)
    return target


def official_file(original: Path, target: Path) -> Path:
    """Wan-AI's form: a flat torch file."""
    torch.save(load_file(original), target)
    return target


def prefixed_file(original: Path, target: Path) -> Path:
    """As part of a checkpoint that holds everything."""
    other = {"model.diffusion_model.head.modulation": torch.zeros(1)}
    save_file({**other, **{f"vae.{name}": tensor for name, tensor in load_file(original).items()}}, target)
    return target
