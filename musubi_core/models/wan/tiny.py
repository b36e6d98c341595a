"""Random weights in the real file formats, small enough to train on a CPU: for the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.encoders.tiny_clip_vision import HIDDEN as PICTURE_WIDTH
from musubi_core.encoders.tiny_clip_vision import TOKENS as PICTURE_TOKENS
from musubi_core.encoders.tiny_clip_vision import write_tiny_clip_vision
from musubi_core.encoders.tiny_t5 import HIDDEN as TEXT_WIDTH
from musubi_core.encoders.tiny_umt5 import write_tiny_umt5
from musubi_core.files.tensors import write_tensors
from musubi_core.models.spec import TinyFiles
from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import Wan
from musubi_core.models.wan.released import layout_of
from musubi_core.models.wan.tasks import TASKS
from musubi_core.models.wan.tiny_vae import tiny_vae
from musubi_core.models.wan.vae_config import WAN21, WAN22

HIDDEN, HEADS, LAYERS, MLP = 128, 1, 2, 192  # one head of 128, as Wan's are


def write_tiny(folder: Path, seed: int) -> TinyFiles:
    """Write a text-to-video network, the VAE, and the text encoder with its tokenizer, about 3 MB.

    The same seed gives the same bytes. Layouts are those of the published single files.
    """
    return write_tiny_variant(folder, seed, task="t2v-14B")


def write_tiny_variant(folder: Path, seed: int, *, task: str) -> TinyFiles:
    """The same for any member of the family, with CLIP for those that use it.

    `options` name the task where it is not the one that the files tell.
    """
    generator = torch.Generator().manual_seed(seed)
    shown = TASKS[task]
    kind = WAN22 if shown.small_latents else WAN21
    dit = folder / f"wan_{task}_tiny_bf16.safetensors"
    vae = folder / f"wan_{'2.2' if shown.small_latents else '2.1'}_vae_tiny.safetensors"
    t5, clip = folder / "umt5_tiny_fp16.safetensors", folder / "clip_vision_tiny.safetensors"
    _write(dit, tiny_network(tiny_config(task), generator), torch.bfloat16)
    _write(vae, tiny_vae(kind, generator), torch.float32)
    write_tiny_umt5(t5, generator)
    options: dict[str, Any] = {"t5": t5}
    if task != "t2v-14B":
        options["task"] = task
    if shown.clip:
        write_tiny_clip_vision(clip, generator)
        options["clip"] = clip
    return TinyFiles(dit=dit, vae=vae, options=options)


def tiny_config(task: str) -> WanConfig:
    """Sizes of the tiny network of a task."""
    layout = layout_of(task)
    return WanConfig(
        hidden=HIDDEN,
        heads=HEADS,
        layers=LAYERS,
        mlp_width=MLP,
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        text_width=TEXT_WIDTH,
        picture_width=PICTURE_WIDTH if layout.pictures else 0,
        picture_tokens=2 * PICTURE_TOKENS if layout.two_pictures else 0,
    )


def tiny_network(config: WanConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the network in original naming. No gate is zero, so every layer takes part."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Wan(config).state_dict().items()}
    weights = random_weights(shapes, generator)
    for name, tensor in weights.items():
        if "_embedding." in name and tensor.ndim > 1:
            tensor.copy_(_map(tensor.shape, generator))  # these are maps, not tables of embeddings
        if name.endswith("modulation"):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))  # added to the time's
    return weights


def _map(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight that keeps numbers of order one."""
    noise = torch.randn(shape, generator=generator)
    return noise / noise[0].numel() ** 0.5


def _write(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in weights.items()}, {"format": "pt"})
