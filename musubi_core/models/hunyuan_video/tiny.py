"""Random weights in the real file formats, small enough to train on a CPU: for the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.random_weights import random_weights
from musubi_core.encoders.tiny_clip import HIDDEN as CLIP_HIDDEN
from musubi_core.encoders.tiny_clip import write_tiny_clip
from musubi_core.files.replace import write_json
from musubi_core.files.tensors import write_tensors
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.hunyuan_video.tiny_tokenizers import write_llama_tokenizer
from musubi_core.models.hunyuan_video.tiny_vae import tiny_vae
from musubi_core.models.spec import TinyFiles

LLAMA_HIDDEN, LLAMA_MLP, LLAMA_LAYERS = 128, 256, 4  # one head of 128, as LLaMA-3's are
CONFIG = HunyuanVideoConfig(
    hidden=128,
    heads=1,
    double_blocks=2,
    single_blocks=2,
    mlp_width=512,
    text_width=LLAMA_HIDDEN,
    pooled_width=CLIP_HIDDEN,
)


def write_tiny(folder: Path, seed: int) -> TinyFiles:
    """Write network, VAE, both text encoders and their tokenizers below `folder`, about 12 MB.

    The same seed gives the same bytes. Layouts are those of the published files: the network in original
    naming, the VAE too, the text encoders as Hugging Face folders.
    """
    generator = torch.Generator().manual_seed(seed)
    dit = folder / "hunyuan_video_tiny_bf16.safetensors"
    vae = folder / "hunyuan_video_vae_tiny_fp16.safetensors"
    llama, clip = folder / "llava-llama-3-tiny", folder / "clip-vit-tiny"
    _write(dit, tiny_network(generator), torch.bfloat16)
    _write(vae, tiny_vae(generator), torch.float16)
    _write_llama(llama, generator)
    write_tiny_clip(clip, generator)
    return TinyFiles(dit=dit, vae=vae, options={"text_encoder1": llama, "text_encoder2": clip})


def tiny_network(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the network in original naming. No gate is zero, so every layer takes part."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in HunyuanVideo(CONFIG).state_dict().items()}
    return random_weights(shapes, generator)


def tiny_llama(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights named as in the language model of LLaVA-Llama-3, for a vocabulary of `rows` tokens."""
    hidden, mlp = LLAMA_HIDDEN, LLAMA_MLP
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for number in range(LLAMA_LAYERS):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (mlp, hidden) for part in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
        shapes |= {f"{layer}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    return random_weights(shapes, generator)


def _write_llama(folder: Path, generator: torch.Generator) -> None:
    rows = write_llama_tokenizer(folder)
    _write(folder / "model.safetensors", tiny_llama(rows, generator), torch.float16)
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": LLAMA_HIDDEN,
        "intermediate_size": LLAMA_MLP,
        "num_hidden_layers": LLAMA_LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    }
    write_json(folder / "config.json", config)


def _write(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in weights.items()}, {"format": "pt"})
