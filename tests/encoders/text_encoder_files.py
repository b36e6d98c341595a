"""Small text encoders made by transformers itself, saved in every layout that is published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROWS, HIDDEN, LAYERS = 100, 256, 4


def make_llama() -> nn.Module:
    """LlamaModel with all layers and random weights; two heads of 128, one key-value head."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=HIDDEN,
        intermediate_size=320,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=8192,
    )
    return randomize(LlamaModel(config))


def make_clip(eos_token_id: int = 2) -> nn.Module:
    """CLIPTextModel with random weights; two heads of 64. CLIP-L's own config names 2 as the end token."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=ROWS,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=eos_token_id,
        pad_token_id=1,
    )
    return randomize(CLIPTextModel(config))


def make_t5(feed_forward: str = "gated-gelu") -> nn.Module:
    """T5EncoderModel with random weights; heads that are wider together than the hidden size, as in T5."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=ROWS,
        d_model=48,
        d_kv=16,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        feed_forward_proj=feed_forward,
    )
    return randomize(T5EncoderModel(config))


def randomize(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.05, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def bare_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights without any prefix, whatever the version of transformers puts in front."""
    return {name.removeprefix("text_model."): tensor.clone() for name, tensor in model.state_dict().items()}


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
