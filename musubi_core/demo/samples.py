"""The same noise through the base model and through base + LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from musubi_core.data.batches import load_batch
from musubi_core.data.order import BatchPlan, PlannedSample
from musubi_core.data.training_set import CachedItem
from musubi_core.models.spec import ArchSpec, EncoderRequest, LoadRequest
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.targets import Targets
from musubi_core.sampling.euler import euler
from musubi_core.sampling.solving import flow_times, last

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

    def picture(self, item: CachedItem, seed: int, *, with_lora: bool) -> np.ndarray:
        """(H, W, 3) uint8 from the caption and the controls of a cached picture, in the size of that picture.

        Equal seeds start from equal noise.
        """
        spec, options = self.spec, self.spec.train_options()
        batch = load_batch(BatchPlan(dataset=0, samples=(alone(item),)))
        latents = batch.pop("latents")  # what is to be drawn is not among the things to draw it from
        assert isinstance(latents, Tensor)  # pictures of one size are stacked
        usual = spec.sampling_with(options)
        conditioning = spec.sample_conditioning(batch, usual.guidance, options)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        shift = usual.shift_at(*latents.shape[-2:])
        self.network.enabled = with_lora

        def velocity(x: Tensor, t: float) -> Tensor:
            return spec.predict(self.model, x, torch.full((len(x),), t), conditioning, options)

        with torch.no_grad():
            latent = last(euler(velocity, noise, flow_times(self.steps, shift)))
            return self.codec.decode(latent)[0, 0].cpu().numpy()


def open_sampler(
    spec: ArchSpec, *, dit: Path, vae: Path, lora: Path, latent_options: object, steps: int
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
    )


def base_beside_lora(
    sampler: Sampler, items: Sequence[CachedItem], *, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each cached picture: what the base model draws and what the LoRA does, from the same noise."""
    return [
        (
            sampler.picture(item, seed + index, with_lora=False),
            sampler.picture(item, seed + index, with_lora=True),
        )
        for index, item in enumerate(items)
    ]


def alone(item: CachedItem) -> PlannedSample:
    """A cached item as the only one of a batch."""
    return PlannedSample(dataset=0, index=0, repeat=0, item=item)
