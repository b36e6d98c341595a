"""From options to a network: choose the layers, make the adapters, load their start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from musubi_core.errors import BadFileError
from musubi_core.networks.config import NetworkArgs, NetworkConfig
from musubi_core.networks.kind import AdapterSettings
from musubi_core.networks.kinds import KINDS
from musubi_core.networks.layer import Layer
from musubi_core.networks.loading import by_dotted_name, load_lora
from musubi_core.networks.naming import canonical, spelling_table
from musubi_core.networks.network import Network, make_adapter
from musubi_core.networks.reading import FileAdapter, listed, read_lora, with_similar
from musubi_core.networks.targets import Choice, Targets, choose_layers


def build_network(
    model: nn.Module,
    config: NetworkConfig,
    targets: Targets,
    *,
    generator: torch.Generator,
    kind: str = "lora",
) -> Network:
    """The network that `config` asks for, with float32 weights on the CPU, not yet applied to the model.

    model may lie on the meta device. generator (CPU) draws the start of the down matrices. With
    network_weights the file is loaded too. Raises ConfigError, and BadFileError for a file that does not fit.
    """
    arguments = config.arguments()
    choices = choose_layers(model, targets, arguments)
    stored: dict[str, FileAdapter] = {}
    if config.dim_from_weights and config.network_weights is not None:
        stored = _stored_adapters(config.network_weights, choices, targets)
        absent = f"not in {config.network_weights}"
        choices = tuple(replace(one, excluded="" if one.layer.name in stored else absent) for one in choices)
    adapters = [
        make_adapter(
            choice.layer,
            KINDS[kind],
            _settings(choice.layer, config, arguments, stored.get(choice.layer.name)),
            generator,
        )
        for choice in choices
        if not choice.excluded
    ]
    network = Network(adapters, choices, targets, loraplus_lr_ratio=arguments.loraplus_lr_ratio)
    if config.network_weights is not None:
        network.loaded = load_lora(network, config.network_weights)
    return network


def _settings(
    layer: Layer, config: NetworkConfig, arguments: NetworkArgs, stored: FileAdapter | None
) -> AdapterSettings:
    if stored is not None:
        rank, alpha = stored.rank, stored.alpha
    elif layer.wide and arguments.conv_dim is not None:
        rank, alpha = arguments.conv_dim, arguments.conv_alpha
    else:
        rank, alpha = config.rank, config.network_alpha
    return AdapterSettings(
        rank=rank,
        alpha=alpha or rank,
        dropout=config.network_dropout or 0.0,
        rank_dropout=arguments.rank_dropout,
        module_dropout=arguments.module_dropout,
    )


def _stored_adapters(path: Path, choices: Sequence[Choice], targets: Targets) -> dict[str, FileAdapter]:
    """The adapters of `path` by layer. Raises BadFileError when one of them belongs to no layer."""
    file = read_lora(path)
    table = spelling_table((choice.layer.name for choice in choices), targets.comfyui)
    foreign = [base for base in file.adapters if canonical(base) not in table] + file.unknown
    if foreign:
        raise BadFileError(
            f"{path}: {len(foreign)} names belong to no layer of this model: {with_similar(foreign, table)}. "
            "Give the LoRA of the model that is trained."
        )
    by_layer, doubled = by_dotted_name(file, table)
    if file.faults or doubled or not by_layer:
        faults = [*file.faults, *doubled] or ["it holds no adapter"]
        raise BadFileError(f"{path} cannot give the ranks: {listed(faults)}.")
    return by_layer
