"""Random weights in the real file formats, small enough to train on a CPU: for the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.files.replace import write_json
from musubi_core.files.tensors import write_tensors
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.hunyuan_video.tiny_tokenizers import write_clip_tokenizer, write_llama_tokenizer
from musubi_core.models.hunyuan_video.tiny_vae import tiny_vae
from musubi_core.models.spec import TinyFiles

LLAMA_HIDDEN, LLAMA_MLP, LLAMA_LAYERS = 128, 256, 4  # one head of 128, as LLaMA-3's are
CLIP_HIDDEN, CLIP_MLP, CLIP_LAYERS, CLIP_TOKENS = 64, 128, 2, 77  # one head of 64, as CLIP-L's are
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
    _write_clip(clip, generator)
    return TinyFiles(dit=dit, vae=vae, options={"text_encoder1": llama, "text_encoder2": clip})


def tiny_network(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the network in original naming. No gate is zero, so every layer takes part."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in HunyuanVideo(CONFIG).state_dict().items()}
    return _random(shapes, generator)


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
    return _random(shapes, generator)


def tiny_clip(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights named as in CLIP-L's text model, for a vocabulary of `rows` tokens."""
    hidden, mlp = CLIP_HIDDEN, CLIP_MLP
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (rows, hidden),
        "text_model.embeddings.position_embedding.weight": (CLIP_TOKENS, hidden),
    }

    def pair(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for number in range(CLIP_LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            pair(f"{layer}.self_attn.{part}", hidden, hidden)
        pair(f"{layer}.mlp.fc1", mlp, hidden)
        pair(f"{layer}.mlp.fc2", hidden, mlp)
        pair(f"{layer}.layer_norm1", hidden)
        pair(f"{layer}.layer_norm2", hidden)
    pair("text_model.final_layer_norm", hidden)
    return _random(shapes, generator)


def _random(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Norm weights near one, biases near zero, embeddings and linear maps that keep numbers of order one."""
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.05 * noise
    if "embed_tokens" in name or "_embedding." in name:
        return 0.5 * noise
    return noise / noise[0].numel() ** 0.5


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


def _write_clip(folder: Path, generator: torch.Generator) -> None:
    rows = write_clip_tokenizer(folder)
    _write(folder / "model.safetensors", tiny_clip(rows, generator), torch.float16)
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": CLIP_HIDDEN,
        "intermediate_size": CLIP_MLP,
        "num_hidden_layers": CLIP_LAYERS,
        "num_attention_heads": 1,
        "max_position_embeddings": CLIP_TOKENS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
    }
    write_json(folder / "config.json", config)


def _write(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in weights.items()}, {"format": "pt"})
