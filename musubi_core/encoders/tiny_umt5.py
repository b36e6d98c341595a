"""A small UMT5 encoder with random weights, in one file with its tokenizer, as ComfyUI has it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.tiny_t5 import tiny_t5
from musubi_core.encoders.tiny_tokenizers import umt5_sentencepiece
from musubi_core.encoders.tokenizer import PACKED
from musubi_core.files.tensors import write_tensors


def write_tiny_umt5(path: Path, generator: torch.Generator) -> None:
    """Its states are as wide as those of `tiny_t5`."""
    model, rows = umt5_sentencepiece()
    weights = {name: tensor.half() for name, tensor in tiny_umt5(rows, generator).items()}
    packed = torch.frombuffer(bytearray(model), dtype=torch.uint8)
    write_tensors(path, {**weights, PACKED: packed}, {"format": "pt"})


def tiny_umt5(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights in transformers' naming, for a vocabulary of `rows` tokens."""
    return tiny_t5(rows, generator, bias_everywhere=True)
