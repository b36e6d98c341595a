"""A small CLIP text encoder with random weights, as a Hugging Face folder: for the demo and the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.encoders.tiny_tokenizers import write_clip_tokenizer
from musubi_core.files.replace import write_json
from musubi_core.files.tensors import write_tensors

HIDDEN, MLP, LAYERS, TOKENS = 64, 128, 2, 77  # one head of 64, as CLIP-L's are


def write_tiny_clip(folder: Path, generator: torch.Generator) -> None:
    """Weights, config.json and tokenizer below `folder`; its pooled output is HIDDEN wide."""
    rows = write_clip_tokenizer(folder)
    weights = {name: tensor.half() for name, tensor in tiny_clip(rows, generator).items()}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "max_position_embeddings": TOKENS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
    }
    write_json(folder / "config.json", config)


def tiny_clip(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights named as in CLIP-L's text model, for a vocabulary of `rows` tokens."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (rows, HIDDEN),
        "text_model.embeddings.position_embedding.weight": (TOKENS, HIDDEN),
    }

    def pair(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for number in range(LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            pair(f"{layer}.self_attn.{part}", HIDDEN, HIDDEN)
        pair(f"{layer}.mlp.fc1", MLP, HIDDEN)
        pair(f"{layer}.mlp.fc2", HIDDEN, MLP)
        pair(f"{layer}.layer_norm1", HIDDEN)
        pair(f"{layer}.layer_norm2", HIDDEN)
    pair("text_model.final_layer_norm", HIDDEN)
    return random_weights(shapes, generator)
