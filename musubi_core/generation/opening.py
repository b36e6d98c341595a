"""The first half of drawing: everything that can be found wrong before weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from musubi_core.device.attention import check_attention
from musubi_core.device.precision import autocast_dtype, dtype_of, pick_device, usual_precision
from musubi_core.errors import ConfigError
from musubi_core.events import Listener, Warned
from musubi_core.generation.config import PARTS, GenerateConfig, arch_options_class
from musubi_core.generation.loading import ReadLora, empty_network, read_loras
from musubi_core.generation.lora_options import LoraOptions, LoraUse
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec, EncoderRequest, Expert, LatentEncoding, LoadRequest
from musubi_core.models.swapping import placing, swapped


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchOptions:
    """An architecture's own options: train (settled), latent and text, each an instance of its class."""

    train: Any
    latent: Any
    text: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model that may be loaded. loras: for each expert; read, and known to fit it."""

    config: GenerateConfig
    spec: ArchSpec
    arch: ArchOptions
    experts: tuple[Expert, ...]
    loras: tuple[tuple[ReadLora, ...], ...]
    device: torch.device
    dtype: torch.dtype  # what matrices are multiplied in

    def load_request(self, expert: Expert, device: torch.device) -> LoadRequest:
        """How to load the network of an expert, without any LoRA."""
        model = self.config.model
        return LoadRequest(
            path=expert.path,
            device=device,
            dtype=self.dtype,
            attention=model.attention,
            split_attention=model.split_attn,
            options=self.arch.train,
            quantisation=model.fp8_options.request(
                targets=self.spec.fp8_targets,
                keep_precise=self.spec.keep_precise,
                architecture=self.spec.name,
            ),
            placement=placing(self.spec, model.swap, device),
        )

    def text_request(self) -> EncoderRequest:
        """How to open the text encoders."""
        cpu = self.config.model.text_encoder_cpu
        return EncoderRequest(
            device=torch.device("cpu") if cpu else self.device, dtype=None, options=self.arch.text
        )

    def latents(self, *, decodes_only: bool) -> LatentEncoding:
        """The VAE; its header is read, its weights are not. Raises ConfigError, BadFileError."""
        model = self.config.model
        return vae_of(
            self.spec,
            self.arch.latent,
            self.device,
            weights=model.vae,
            dtype=model.vae_dtype,
            decodes_only=decodes_only,
        )


def open_model(config: GenerateConfig, spec: ArchSpec | None, emit: Listener) -> OpenedModel:
    """Check options and files against each other. Raises ConfigError, BadFileError."""
    dit = config.model.dit
    assert dit is not None  # by GenerateConfig.check
    name = config.model.architecture
    spec = spec or (architecture(name) if name else architecture_of(dit))
    given = parts_of(config, spec)
    settled = spec.settle(dit, given.train)
    check = getattr(settled, "check", None)
    if check is not None:
        check()
    arch = ArchOptions(
        train=settled, latent=with_shared(given.latent, settled), text=with_shared(given.text, settled)
    )
    device = pick_device(config.model.device)
    check_attention(config.model.attention, training=False, device=device)
    experts = spec.experts(dit, settled)
    if config.model.swap.blocks_to_swap and any(expert.offload for expert in experts):
        raise ConfigError(
            "--offload_inactive_dit moves whole networks and --blocks_to_swap parts of them, which cannot be "
            "combined. Leave one of them out."
        )
    uses = lora_uses(config.loras, len(experts), emit)
    opened = OpenedModel(
        config=config,
        spec=spec,
        arch=arch,
        experts=experts,
        loras=(),
        device=device,
        dtype=autocast_dtype(config.model.mixed_precision or usual_precision(device)) or torch.float32,
    )
    if config.model.swap.blocks_to_swap:
        swapped(spec, config.model.swap, empty_network(spec, opened.load_request(experts[0], device)))
    loras = tuple(
        read_loras(spec, opened.load_request(expert, device), wanted)
        for expert, wanted in zip(experts, uses, strict=True)
    )
    return replace(opened, loras=loras)


def parts_of(config: GenerateConfig, spec: ArchSpec) -> ArchOptions:
    """The architecture's options as they were given, defaults where nothing was."""
    given: Any = config.arch_options or arch_options_class(spec)()
    return ArchOptions(**{part: getattr(given, part) for part in PARTS})


def with_shared(options: Any, settled: Any) -> Any:
    """The options with what `settled` knows under the same names, e.g. what a file told."""
    names = {one.name for one in dataclasses.fields(options)} & {
        one.name for one in dataclasses.fields(settled)
    }
    return replace(options, **{name: getattr(settled, name) for name in names})


def lora_uses(options: LoraOptions, experts: int, emit: Listener) -> tuple[tuple[LoraUse, ...], ...]:
    """The LoRAs of each network, lowest noise first. Says when one of two networks gets none.

    Raises ConfigError for LoRAs of a second network that is not there.
    """
    low, high = options.low_noise, options.high_noise
    if experts == 1:
        if high:
            raise ConfigError(
                "--lora_weight_high_noise is for a second network, and there is one. Use --lora_weight."
            )
        return (low,)
    if bool(low) != bool(high):
        one, other = ("low", "high") if low else ("high", "low")
        flag = "--lora_weight_high_noise" if low else "--lora_weight"
        emit(
            Warned(
                text=f"Only the network for {one} noise gets a LoRA. If it is for both, give it in {flag} as "
                f"well; otherwise the network for {other} noise works as it is."
            )
        )
    return (low, *[high] * (experts - 1))


def vae_of(
    spec: ArchSpec,
    options: Any,
    device: torch.device,
    *,
    weights: Path | None,
    dtype: str | None,
    decodes_only: bool,
) -> LatentEncoding:
    """A VAE, not yet opened. dtype: what it computes in, by name; None leaves it to the architecture.

    Reads the header of its file. Raises ConfigError, BadFileError.
    """
    return spec.latents(
        EncoderRequest(
            device=device,
            dtype=dtype_of(dtype) if dtype else None,
            options=options,
            weights=weights,
            decodes_only=decodes_only,
        )
    )


def lora_facts(loras: Sequence[Sequence[ReadLora]]) -> list[dict[str, Any]]:
    """The LoRAs of a model for metadata, each file once per network."""
    return [
        {"file": one.path.name, "multiplier": one.multiplier, **({"network": side} if len(loras) > 1 else {})}
        for side, own in enumerate(loras)
        for one in own
    ]
