"""The second part of a run's start: the frozen networks, and the LoRAs that hang on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from musubi_core.errors import ConfigError
from musubi_core.events import Note, ShouldStop, never
from musubi_core.generation.loading import load_frozen, watcher
from musubi_core.models.spec import Expert, LoadRequest
from musubi_core.models.swapping import placing, start_swap
from musubi_core.networks.building import build_network
from musubi_core.networks.merging import weight_transform
from musubi_core.networks.network import Network
from musubi_core.networks.report import notes
from musubi_core.networks.targets import Targets
from musubi_core.offload.experts import HOST, Experts
from musubi_core.offload.swap import Swap
from musubi_core.training.draws import generator_for
from musubi_core.training.loras import Loras, start_file
from musubi_core.training.opening import Opened


def load_experts(opened: Opened, should_stop: ShouldStop = never) -> Experts:
    """Every network that the run needs; the first on the device, the others where they wait.

    Raises ConfigError when blocks are to be swapped in networks that wait as a whole, Stopped.
    """
    device, experts = opened.here.device, opened.experts
    if opened.config.swap.blocks_to_swap and any(expert.offload for expert in experts):
        raise ConfigError(
            "--offload_inactive_dit moves whole networks and --blocks_to_swap parts of them, which cannot be "
            "combined. Leave one of them out."
        )
    models = [
        load_model(opened, expert, HOST if at and expert.offload else device, should_stop)
        for at, expert in enumerate(experts)
    ]
    return Experts(models, device=device, waits=[expert.offload for expert in experts])


def load_model(
    opened: Opened, expert: Expert, device: torch.device, should_stop: ShouldStop = never
) -> nn.Module:
    """A frozen network, base_weights merged into it before any of it is quantised. Raises Stopped."""
    config, spec, here = opened.config, opened.spec, opened.here
    merge = weight_transform(config.network.base_files(), spec.lora_names.comfyui)
    return load_frozen(
        spec,
        LoadRequest(
            path=expert.path,
            device=device,
            dtype=here.dtype,
            attention=config.model.attention,
            split_attention=config.model.split_attn,
            checkpointing=config.loop.gradient_checkpointing,
            options=config.arch_options,
            quantisation=config.fp8.request(
                targets=spec.fp8_targets, keep_precise=spec.keep_precise, architecture=spec.name
            ),
            placement=placing(spec, config.swap, device),
            # of several processes none may leave alone; the loop asks them together
            watch=watcher(expert, opened.emit, should_stop if here.count == 1 else never),
        ),
        opened.emit,
        merge=merge if config.network.base_weights else None,
        name=f"{expert.name} base model" if expert.name else "base model",
    )


def swap_blocks(opened: Opened, experts: Experts) -> list[Swap]:
    """Let blocks of each network wait in host memory, as asked."""
    options = opened.config.swap
    swaps = [start_swap(opened.spec, options, model, opened.here.device) for model in experts.models]
    for one in swaps:
        for line in one.lines(pinned=options.use_pinned_memory_for_block_swap):
            opened.emit(Note(text=line))
    return swaps


def attach_loras(opened: Opened, experts: Experts) -> Loras:
    """Float32 adapters beside the networks' layers, with the weights of the state if there is one."""
    names = tuple(dict.fromkeys(expert.lora for expert in opened.experts))
    models = dict(zip([expert.lora for expert in opened.experts], experts.models, strict=True))
    loras = Loras({name: build_lora(opened, name, models[name]) for name in names}, opened.experts)
    if opened.state is not None:
        loras.load_state_dict(opened.state.network)
    loras.to(opened.here.device)
    loras.train()
    loras.apply_to(experts.models)
    for name, network in loras.networks.items():
        for line in notes(network, verbose=opened.config.network.arguments().verbose):
            opened.emit(Note(text=f"{name}: {line}" if name else line))
    return loras


def build_lora(opened: Opened, name: str, model: nn.Module) -> Network:
    """The LoRA of this name for a model, and for any other of the same layout."""
    config, spec = opened.config.network, opened.spec
    named = (name,) if name else ()  # the numbers of a LoRA without a name are those of all earlier versions
    return build_network(
        model,
        replace(config, network_weights=start_file(config.network_weights, name, opened.lora_names)),
        Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui),
        generator=generator_for("network", opened.fresh.seed, *named),
    )
