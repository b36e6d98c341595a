"""Random weights in the real file formats, small enough to train on a CPU: for the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.encoders.tiny_clip import HIDDEN as CLIP_HIDDEN
from musubi_core.encoders.tiny_clip import write_tiny_clip
from musubi_core.encoders.tiny_t5 import HIDDEN as T5_HIDDEN
from musubi_core.encoders.tiny_t5 import write_tiny_t5
from musubi_core.files.tensors import write_tensors
from musubi_core.models.flux_kontext.config import FluxKontextConfig
from musubi_core.models.flux_kontext.model import FluxKontext
from musubi_core.models.flux_kontext.tiny_vae import tiny_vae
from musubi_core.models.spec import TinyFiles

CONFIG = FluxKontextConfig(
    hidden=128,
    heads=1,
    double_blocks=2,
    single_blocks=2,
    mlp_width=512,
    text_width=T5_HIDDEN,
    pooled_width=CLIP_HIDDEN,
)


def write_tiny(folder: Path, seed: int) -> TinyFiles:
    """Write network, VAE, both text encoders and their tokenizers below `folder`, about 7 MB.

    The same seed gives the same bytes. Layouts are those of the published files: network and VAE in original
    naming, the text encoders as Hugging Face folders.
    """
    generator = torch.Generator().manual_seed(seed)
    dit = folder / "flux1-kontext-tiny.safetensors"
    vae = folder / "ae-tiny.safetensors"
    t5, clip = folder / "t5-tiny", folder / "clip-vit-tiny"
    _write(dit, tiny_network(generator), torch.bfloat16)
    _write(vae, tiny_vae(generator), torch.float32)
    write_tiny_t5(t5, generator)
    write_tiny_clip(clip, generator)
    return TinyFiles(dit=dit, vae=vae, options={"text_encoder1": t5, "text_encoder2": clip})


def tiny_network(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the network in original naming. No gate is zero, so every layer takes part."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in FluxKontext(CONFIG).state_dict().items()}
    return random_weights(shapes, generator)


def _write(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in weights.items()}, {"format": "pt"})
