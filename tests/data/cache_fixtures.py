"""Caches made by hand, for tests of the cache side. Keys as in the tables of the reference (3.1 to 3.4)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from musubi_core.config import LatentShape
from musubi_core.data.dataset import DatasetConfig

HV = LatentShape(
    architecture="hunyuan_video", short="hv", channels=16, spatial=8, temporal=4, pixel_step=16, fps=24.0
)
REQUIRED = ("latents", "llm", "llm_mask", "clipL")


def dataset(tmp_path: Path, name: str = "set", **values) -> DatasetConfig:
    media, cache = tmp_path / f"{name}_media", tmp_path / f"{name}_cache"
    media.mkdir(exist_ok=True)
    cache.mkdir(exist_ok=True)
    return DatasetConfig(image_directory=media, cache_directory=cache, **values)


def foreign_latent(path: Path, *, grid=(1, 4, 4), fill=None, architecture="hunyuan_video") -> Path:
    """A latent file as musubi-tuner writes it: made without any code of ours."""
    frames, height, width = grid
    tensor = torch.randn(16, *grid) if fill is None else torch.full((16, *grid), fill)
    save_file(
        {f"latents_{frames}x{height}x{width}_float16": tensor.half()},
        path,
        {"architecture": architecture, "width": "32", "height": "32", "format_version": "1.0.1"},
    )
    return path


def foreign_text(path: Path, caption: str = "a cat", architecture="hunyuan_video") -> Path:
    """A HunyuanVideo text file as musubi-tuner writes it, with narrow tensors."""
    save_file(
        {
            "llm_float16": torch.randn(256, 8).half(),
            "llm_mask": torch.ones(256, dtype=torch.int64),
            "clipL_float16": torch.randn(6).half(),
            "clipL_mask": torch.ones(77, dtype=torch.int64),
        },
        path,
        {"architecture": architecture, "caption1": caption, "format_version": "1.0.1"},
    )
    return path


def foreign_item(folder: Path, stem: str, **latent) -> None:
    foreign_latent(folder / f"{stem}_0032x0032_hv.safetensors", **latent)
    foreign_text(folder / f"{stem}_hv_te.safetensors")
