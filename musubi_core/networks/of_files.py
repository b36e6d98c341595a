"""Finished LoRAs, to be used and not trained: the adapters of a file, beside the layers of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.networks.kind import AdapterSettings
from musubi_core.networks.layer import Layer, layer_of
from musubi_core.networks.loading import by_dotted_name
from musubi_core.networks.naming import canonical, spelling_table, spellings
from musubi_core.networks.network import Adapter, Network, make_adapter
from musubi_core.networks.reading import FileAdapter, LoraFile, listed, with_similar
from musubi_core.networks.targets import Targets


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every layer that an adapter could belong to, by dotted name. The model may lie on the meta device."""
    found = ((name, layer_of(name, module)) for name, module in model.named_modules())
    return {name: layer for name, layer in found if layer is not None}


def fitting(file: LoraFile, layers: Mapping[str, Layer], targets: Targets) -> dict[str, FileAdapter]:
    """The adapters of a file by the layers they belong to.

    Raises BadFileError when anything in the file is damaged, of another shape, or belongs to no layer.
    """
    table = spelling_table(layers, targets.comfyui)
    foreign = [base for base in file.adapters if canonical(base) not in table] + file.unknown
    if foreign:
        raise BadFileError(
            f"{file.path} has {len(foreign)} names that belong to no layer of this model: "
            f"{with_similar(foreign, table)}. Give a LoRA of this model; one of another program may first "
            "need musubi convert-lora."
        )
    by_layer, faults = by_dotted_name(file, table)
    faults = [*file.faults, *faults]
    for name, stored in by_layer.items():
        fault = stored.fault(layers[name].shape, stored.kind.shapes(layers[name], stored.rank))
        faults += [f"{name}: {fault}"] if fault else []
    if faults or not by_layer:
        raise BadFileError(f"{file.path} cannot be used: {listed(faults or ['it holds no adapter'])}.")
    return by_layer


def chosen(
    file: LoraFile,
    layers: Mapping[str, Layer],
    targets: Targets,
    *,
    include: str = "",
    exclude: str = "",
) -> LoraFile:
    """The file without the adapters that are not wanted; all that is in it must fit the model.

    include, exclude: regular expressions, searched for in the name of a layer as LoRA files have it
    (lora_unet_blocks_9_cross_attn_k) and as the model has it (blocks.9.cross_attn.k). What include does not
    find is left out, then what exclude finds. Raises BadFileError as `fitting` does, and ConfigError for a
    broken expression or when nothing is left.
    """
    wanted, unwanted = _expression(include, "include_patterns"), _expression(exclude, "exclude_patterns")
    kept: dict[str, FileAdapter] = {}
    for name, adapter in fitting(file, layers, targets).items():
        names = (name, *spellings(name, targets.comfyui))
        inside = wanted is None or any(wanted.search(one) for one in names)
        outside = unwanted is not None and any(unwanted.search(one) for one in names)
        if inside and not outside:
            kept[name] = adapter
    if not kept:
        raise ConfigError(
            f"{file.path}: of its {len(file.adapters)} layers none is left by --include_patterns "
            f"{include!r} and --exclude_patterns {exclude!r}. Its layers are called like "
            f"{next(iter(file.adapters))}."
        )
    return replace(file, adapters={spellings(name, ())[0]: adapter for name, adapter in kept.items()})


def network_of(model: nn.Module, file: LoraFile, targets: Targets, multiplier: float) -> Network:
    """Adapters with the weights of the file, at this strength, on the CPU and not yet applied to the model.

    Raises BadFileError for a file that does not fit.
    """
    layers = layers_of(model)
    found = fitting(file, layers, targets)
    network = Network([_filled(layers[name], stored) for name, stored in found.items()], (), targets)
    network.multiplier = multiplier
    network.requires_grad_(False)
    return network.eval()


def _filled(layer: Layer, stored: FileAdapter) -> Adapter:
    settings = AdapterSettings(rank=stored.rank, alpha=stored.alpha or stored.rank)
    adapter = make_adapter(layer, stored.kind, settings, torch.Generator())
    with torch.no_grad():
        for part, parameter in adapter.weights.named_parameters():
            parameter.copy_(stored.tensors[part])
    return adapter


def _expression(pattern: str, option: str) -> re.Pattern[str] | None:
    if not pattern:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--{option} {pattern!r} is not a valid regular expression: {error}. Example: 'cross_attn'."
        ) from None
