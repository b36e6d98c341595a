"""The same noise through the base model and through base + LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from musubi_core.data.cache_file import read_cache
from musubi_core.models.spec import ArchSpec, EncoderRequest, LoadRequest
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.targets import Targets
from musubi_core.sampling.flow_euler import euler_times, sample_euler

if TYPE_CHECKING:
    from musubi_core.networks.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """What every sample of the demo shares."""

    spec: ArchSpec
    model: nn.Module
    network: Network
    codec: Any
    steps: int
    size: int  # pixels, both sides

    def picture(self, text: dict[str, Tensor], seed: int, *, with_lora: bool) -> np.ndarray:
        """(H, W, 3) uint8 for one encoded caption. Equal seeds start from equal noise."""
        shape, spec = self.spec.latent, self.spec
        batch = {name: tensor[None] for name, tensor in text.items()}
        options = spec.train_options()
        conditioning = spec.sample_conditioning(batch, spec.sampling.guidance, options)
        frames, height, width = shape.size(self.size, self.size)
        noise = torch.randn(
            1, shape.channels, frames, height, width, generator=torch.Generator().manual_seed(seed)
        )
        self.network.enabled = with_lora

        def velocity(x: Tensor, t: float) -> Tensor:
            return spec.predict(self.model, x, torch.full((len(x),), t), conditioning, options)

        with torch.no_grad():
            latent = sample_euler(velocity, noise, euler_times(self.steps, spec.sampling.shift))
            return self.codec.decode(latent)[0, 0].cpu().numpy()


def open_sampler(
    spec: ArchSpec, *, dit: Path, vae: Path, lora: Path, latent_options: object, steps: int, size: int
) -> Sampler:
    """Load the network, the LoRA with the ranks of its own file, and the VAE, all in float32 on the CPU."""
    cpu = torch.device("cpu")
    model = spec.load(LoadRequest(path=dit, device=cpu, dtype=torch.float32))
    network = build_network(
        model,
        NetworkConfig(network_weights=lora, dim_from_weights=True),
        Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui),
        generator=torch.Generator(),
    )
    network.eval()
    network.apply_to(model)
    request = EncoderRequest(device=cpu, dtype=torch.float32, options=latent_options, weights=vae)
    return Sampler(
        spec=spec,
        model=model,
        network=network,
        codec=spec.latents(request).open(),
        steps=steps,
        size=size,
    )


def base_beside_lora(
    sampler: Sampler, captions: Sequence[Path], *, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each text cache file: the base model's picture and the LoRA's, from the same noise."""
    rows = []
    for index, path in enumerate(captions):
        _, text = read_cache(path)
        rows.append(
            (
                sampler.picture(text, seed + index, with_lora=False),
                sampler.picture(text, seed + index, with_lora=True),
            )
        )
    return rows
