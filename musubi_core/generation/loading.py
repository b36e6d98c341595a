"""Frozen networks with finished LoRAs, put into their weights or hung beside their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from musubi_core.errors import Stopped
from musubi_core.events import Listener, Note, Progress, ShouldStop, never
from musubi_core.generation.lora_options import LoraUse
from musubi_core.models.spec import ArchSpec, Expert, LoadRequest
from musubi_core.networks.merging import WeightMerge
from musubi_core.networks.network import Network
from musubi_core.networks.of_files import chosen, layers_of, network_of
from musubi_core.networks.reading import LoraFile, read_lora
from musubi_core.networks.targets import Targets
from musubi_core.quantization.report import report as quantisation_report

META = torch.device("meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLora:
    """The adapters of a file that one network gets, all of them known to fit it."""

    file: LoraFile
    multiplier: float

    @property
    def path(self) -> Path:
        return self.file.path


def load_frozen(
    spec: ArchSpec,
    request: LoadRequest,
    emit: Listener,
    *,
    merge: WeightMerge | None = None,
    name: str = "base model",
) -> nn.Module:
    """A frozen network, `merge` added to its weights before any of them is quantised. Tells what was done."""
    model = spec.load(replace(request, transform=merge))
    if request.quantisation is not None:
        for event in quantisation_report(model, request.quantisation):
            emit(event)
    if merge is not None:
        for path, layers in merge.finish().items():
            emit(Note(text=f"{path.name} was merged into {layers} layers of the {name}."))
    model.requires_grad_(False)
    return model.eval()


def targets_of(spec: ArchSpec) -> Targets:
    """What an architecture says about its adapters, for the room that knows no architecture."""
    return Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui)


def read_loras(spec: ArchSpec, request: LoadRequest, uses: Sequence[LoraUse]) -> tuple[ReadLora, ...]:
    """The LoRAs of one network, read and compared with it. Of the network, only the header is read.

    Raises BadFileError for a file that does not fit, ConfigError when its patterns leave nothing.
    """
    if not uses:
        return ()
    layers, targets = layers_of(empty_network(spec, request)), targets_of(spec)
    return tuple(
        ReadLora(
            file=chosen(read_lora(use.path), layers, targets, include=use.include, exclude=use.exclude),
            multiplier=use.multiplier,
        )
        for use in uses
        if use.multiplier
    )


def load_with_merged(
    spec: ArchSpec, request: LoadRequest, loras: Sequence[ReadLora], emit: Listener, *, name: str
) -> nn.Module:
    """The network with LoRAs in its weights: all sums in float32, rounded once."""
    if not loras:
        return load_frozen(spec, request, emit, name=name)
    merge = WeightMerge([(one.file, one.multiplier) for one in loras], spec.lora_names.comfyui)
    return load_frozen(spec, request, emit, merge=merge, name=name)


def hang_beside(
    spec: ArchSpec,
    model: nn.Module,
    loras: Sequence[ReadLora],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Network, ...]:
    """Apply LoRAs to a loaded network at run time, until each is removed. dtype: what they compute in."""
    networks = []
    for one in loras:
        network = network_of(model, one.file, targets_of(spec), one.multiplier)
        network.to(device, dtype)
        networks.append(network)
        network.apply_to(model)
    return tuple(networks)


def empty_network(spec: ArchSpec, request: LoadRequest) -> nn.Module:
    """The network without memory, for its names and sizes; only the header of its file is read."""
    return spec.load(replace(request, device=META, quantisation=None, placement=None, transform=None))


def watcher(expert: Expert, emit: Listener, should_stop: ShouldStop = never) -> Callable[[int, int], None]:
    """For `LoadRequest.watch`: shows how far loading is, and raises Stopped when it shall end."""
    stage = f"load {expert.name}" if expert.name else "load"

    def watch(done: int, total: int) -> None:
        if should_stop():
            raise Stopped
        emit(Progress(stage=stage, done=done, total=total, text=expert.path.name))

    return watch
