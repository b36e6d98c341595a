"""A small T5 v1.1 encoder with random weights, as a Hugging Face folder: for the demo and the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.encoders.tiny_tokenizers import write_t5_tokenizer
from musubi_core.files.replace import write_json
from musubi_core.files.tensors import write_tensors

HIDDEN, HEAD, HEADS, MLP, LAYERS = 64, 64, 2, 128, 2  # heads of 64, as T5's are
BUCKETS = 32


def write_tiny_t5(folder: Path, generator: torch.Generator) -> None:
    """Weights, config.json and tokenizer below `folder`; its states are HIDDEN wide."""
    rows = write_t5_tokenizer(folder)
    weights = {name: tensor.bfloat16() for name, tensor in tiny_t5(rows, generator).items()}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    config = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": rows,
        "d_model": HIDDEN,
        "d_kv": HEAD,
        "d_ff": MLP,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config)


def tiny_t5(rows: int, generator: torch.Generator, *, bias_everywhere: bool = False) -> dict[str, Tensor]:
    """Weights named as in the encoder of T5 v1.1, for a vocabulary of `rows` tokens.

    bias_everywhere: every layer has a position bias, as in UMT5, and not the first alone.
    """
    inner = HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (rows, HIDDEN)}
    for number in range(LAYERS):
        attention, mlp = (f"encoder.block.{number}.layer.{part}" for part in (0, 1))
        shapes |= {f"{attention}.SelfAttention.{part}.weight": (inner, HIDDEN) for part in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (HIDDEN, inner)
        if number == 0 or bias_everywhere:
            shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (BUCKETS, HEADS)
        shapes[f"{attention}.layer_norm.weight"] = (HIDDEN,)
        shapes |= {f"{mlp}.DenseReluDense.wi_{part}.weight": (MLP, HIDDEN) for part in (0, 1)}
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (HIDDEN, MLP)
        shapes[f"{mlp}.layer_norm.weight"] = (HIDDEN,)
    shapes["encoder.final_layer_norm.weight"] = (HIDDEN,)
    weights = random_weights(shapes, generator)
    for name, tensor in weights.items():
        if name.endswith(".q.weight"):
            tensor.mul_(HEAD**-0.5)  # T5 does not divide by the head's width when it attends
    return weights
