"""A small CLIP image encoder with random weights, in one file, as ComfyUI has it: for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.files.tensors import write_tensors

HIDDEN, MLP, LAYERS, PATCH = 80, 96, 2, 14  # one head of 80, as ViT-H's are
TOKENS = 257  # of a picture of 224 x 224, as in ViT-H


def write_tiny_clip_vision(path: Path, generator: torch.Generator) -> None:
    """Its features are HIDDEN wide, TOKENS of them per picture."""
    weights = {name: tensor.half() for name, tensor in tiny_clip_vision(generator).items()}
    write_tensors(path, weights, {"format": "pt"})


def tiny_clip_vision(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in transformers' naming, without the projection, which nobody uses."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (HIDDEN,),
        "vision_model.embeddings.patch_embedding.weight": (HIDDEN, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": (TOKENS, HIDDEN),
    }

    def pair(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    pair("vision_model.pre_layrnorm", HIDDEN)
    for number in range(LAYERS):
        layer = f"vision_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            pair(f"{layer}.self_attn.{part}", HIDDEN, HIDDEN)
        pair(f"{layer}.mlp.fc1", MLP, HIDDEN)
        pair(f"{layer}.mlp.fc2", HIDDEN, MLP)
        pair(f"{layer}.layer_norm1", HIDDEN)
        pair(f"{layer}.layer_norm2", HIDDEN)
    pair("vision_model.post_layernorm", HIDDEN)
    return random_weights(shapes, generator)
