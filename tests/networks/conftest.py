"""A small stand-in model with every kind of layer, and a tiny HunyuanVideo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.registry import architecture
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.network import Network
from musubi_core.networks.targets import Targets


class Block(nn.Module):
    """Names with dots and underscores that look alike once dots are underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_qkv = nn.Linear(8, 24)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(24, 16), "fc2": nn.Linear(16, 8)})
        self.norm_linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm_linear(self.mlp["fc2"](self.mlp["fc1"](self.attn_qkv(x)).tanh()))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.img_in(x)
        for block in self.blocks:
            x = block(x)
        return x


TARGETS = Targets(
    classes=("Block",), exclude=(".*norm.*",), comfyui=(("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"))
)


@pytest.fixture
def targets() -> Targets:
    return TARGETS


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


@pytest.fixture
def build(model: Model) -> Callable[..., Network]:
    """build(base=None, targets=..., seed=0, trained=False, **options) -> a network, not yet applied.

    trained: the up matrices hold random numbers, as after some training.
    """

    def make(
        base: nn.Module | None = None,
        *,
        targets: Targets = TARGETS,
        seed: int = 0,
        trained: bool = False,
        **options: Any,
    ) -> Network:
        generator = torch.Generator().manual_seed(seed)
        network = build_network(base or model, NetworkConfig(**options), targets, generator=generator)
        if trained:
            for parameter in network.parameters():
                parameter.detach().normal_(std=0.3, generator=generator)
        return network

    return make


@pytest.fixture
def hunyuan_targets() -> Targets:
    spec = architecture("hunyuan_video")
    return Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui)


@pytest.fixture
def tiny_hunyuan() -> HunyuanVideo:
    torch.manual_seed(0)
    sizes = {"hidden": 128, "heads": 1, "double_blocks": 2, "single_blocks": 2, "mlp_width": 512}
    return HunyuanVideo(HunyuanVideoConfig(**sizes, text_width=32)).requires_grad_(False)
