"""The same noise through the base model and through base + LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from musubi_core.data.batches import load_item
from musubi_core.data.training_set import CachedItem
from musubi_core.generation.conditions import Conditions
from musubi_core.generation.draw import draw
from musubi_core.generation.networks import Networks
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.settings import settle_prompt
from musubi_core.models.spec import ArchSpec, EncoderRequest, LatentCodec, LoadRequest
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.targets import Targets

if TYPE_CHECKING:
    from musubi_core.networks.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """What every sample of the demo shares."""

    networks: Networks
    lora: Network
    codec: LatentCodec
    steps: int

    def picture(self, item: CachedItem, seed: int, *, with_lora: bool) -> np.ndarray:
        """(H, W, 3) uint8 from the caption and the controls of a cached picture, in the size of that picture.

        Equal seeds start from equal noise. Without guidance by a negative prompt: the weights are random.
        """
        spec, options = self.networks.spec, self.networks.options
        tensors = load_item(item)
        latents = tensors.pop("latents")  # what is to be drawn is not among the things to draw it from
        stride = spec.latent_with(options).spatial
        prompt = Prompt(
            text=item.stem,
            width=latents.shape[-1] * stride,
            height=latents.shape[-2] * stride,
            frames=1,
            seed=seed,
            steps=self.steps,
            cfg_scale=1.0,
        )
        settings, _ = settle_prompt(prompt, spec, options, experts=self.networks.experts, seed=seed)
        size = tuple(latents.shape)
        conditions = Conditions(settings=settings, size=size, text=tensors, negative=None, pictures={})
        self.lora.enabled = with_lora
        latent = draw(self.networks, conditions)
        assert latent is not None  # nobody stops it
        return self.codec.decode(latent)[0, 0].cpu().numpy()


def open_sampler(
    spec: ArchSpec, *, dit: Path, vae: Path, lora: Path, latent_options: object, steps: int
) -> Sampler:
    """Load the network, the LoRA with the ranks of its own file, and the VAE, all in float32 on the CPU."""
    cpu = torch.device("cpu")
    options = spec.settle(dit, spec.train_options())
    model = spec.load(LoadRequest(path=dit, device=cpu, dtype=torch.float32, options=options))
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
        networks=Networks(
            spec=spec,
            options=options,
            experts=spec.experts(dit, options),
            at_work=lambda side: model,
            device=cpu,
        ),
        lora=network,
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
