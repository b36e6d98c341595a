"""Tiny HunyuanVideo networks with random weights in which nothing is zero or one by accident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo

TINY = HunyuanVideoConfig(
    hidden=64, heads=2, double_blocks=2, single_blocks=2, mlp_width=256, text_width=32, pooled_width=24
)
SIZE = (3, 6, 10)  # latent frames, rows, columns
LENGTHS = (5, 9)


@pytest.fixture
def hunyuan_config() -> HunyuanVideoConfig:
    return TINY


@pytest.fixture
def hunyuan() -> Callable[..., HunyuanVideo]:
    """Builds the tiny network: sizes by keyword, then constructor options. The weights depend on the seed."""

    def build(seed: int = 0, config: HunyuanVideoConfig = TINY, **options: Any) -> HunyuanVideo:
        sizes = {name: options.pop(name) for name in list(options) if hasattr(config, name)}
        network = HunyuanVideo(replace(config, **sizes), **options)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            with torch.no_grad():
                parameter.normal_(std=0.08, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
        return network.requires_grad_(False)

    return build


@pytest.fixture
def hunyuan_inputs() -> Callable[..., dict[str, Any]]:
    """Keyword arguments of `HunyuanVideo.forward` for captions of the given lengths."""

    def make(
        seed: int = 1, lengths: tuple[int, ...] = LENGTHS, config: HunyuanVideoConfig = TINY
    ) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(len(lengths), *shape, generator=generator)

        return {
            "x": noise(config.in_channels, *SIZE),
            "t": torch.rand(len(lengths), generator=generator) * 1000,
            "text": noise(12, config.text_width),
            "lengths": lengths,
            "pooled": noise(config.pooled_width),
            "guidance": torch.tensor([6000.0, 1.0, 3500.0])[: len(lengths)],
        }

    return make
