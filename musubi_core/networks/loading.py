"""`--network_weights`: put the adapters of a file into a network, and say what did not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from musubi_core.errors import BadFileError
from musubi_core.networks.naming import canonical, spelling_table
from musubi_core.networks.network import Network
from musubi_core.networks.reading import FileAdapter, LoraFile, listed, read_lora, with_similar


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of every key of a LoRA file. Names are dotted names of layers where they are known."""

    path: Path
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]  # names in the file that the model does not know
    unmatched_hint: str  # the same for a message, with near misses
    not_adapted: tuple[str, ...]  # layers of the model that have no adapter, each with the reason
    faults: tuple[str, ...]  # wrong rank, wrong shape, incomplete or not finite
    missing: tuple[str, ...]  # adapters of the network that the file says nothing about
    alpha_source: dict[str, str]  # "file", or "rank" where the file has no alpha

    def check(self) -> None:
        """Raises BadFileError when anything in the file was not used."""
        problems = []
        if self.unmatched:
            problems.append(
                f"{len(self.unmatched)} names belong to no layer of this model: {self.unmatched_hint}. "
                "The file was made for another model, or for a text encoder"
            )
        if self.not_adapted:
            problems.append(
                f"{len(self.not_adapted)} layers have no adapter in this run: {listed(self.not_adapted)}. "
                "Name them in include_patterns, or set dim_from_weights to train what the file trains"
            )
        if self.faults:
            problems.append(f"{len(self.faults)} adapters do not fit: {listed(self.faults)}")
        if not self.matched and not problems:
            problems.append("it holds no adapter")
        if problems:
            raise BadFileError(f"{self.path} cannot be used as a start: {'. '.join(problems)}.")

    def note(self) -> str:
        """One line for the user."""
        text = f"{self.path.name}: {len(self.matched)} adapters loaded, alpha from the file"
        without = sum(source == "rank" for source in self.alpha_source.values())
        if without:
            text += f" (alpha = rank for {without} without one)"
        if self.missing:
            text += f"; {len(self.missing)} start from zero, as the file lacks them: {listed(self.missing)}"
        return text + "."


def load_lora(network: Network, path: Path, *, strict: bool = True) -> LoadReport:
    """Copy weights and alphas of a file into the network, and report.

    strict: raise BadFileError, before anything is changed, when a key of the file finds no place or has
    another rank or shape. Otherwise what fits is loaded and the caller judges the report.
    """
    file = read_lora(path)
    by_layer, report = match(network, file)
    if strict:
        report.check()
    with torch.no_grad():
        for name in report.matched:
            adapter, stored = network.adapters[name], by_layer[name]
            for part, parameter in adapter.weights.named_parameters():
                parameter.copy_(stored.tensors[part])
            adapter.alpha = float(adapter.rank) if stored.alpha is None else stored.alpha
    return report


def match(network: Network, file: LoraFile) -> tuple[dict[str, FileAdapter], LoadReport]:
    """Which layer each adapter of the file belongs to, and everything that does not fit."""
    table = spelling_table((choice.layer.name for choice in network.choices), network.targets.comfyui)
    by_layer, doubled = by_dotted_name(file, table)
    reasons = {choice.layer.name: choice.excluded for choice in network.choices}
    faults = {name: _fault(network, name, by_layer[name]) for name in by_layer if name in network.adapters}
    matched = tuple(name for name in network.adapters if faults.get(name) == "")
    foreign = [base for base in file.adapters if canonical(base) not in table]
    report = LoadReport(
        path=file.path,
        matched=matched,
        unmatched=(*foreign, *file.unknown),
        unmatched_hint=with_similar([*foreign, *file.unknown], table),
        not_adapted=tuple(f"{name} ({reasons[name]})" for name in by_layer if name not in network.adapters),
        faults=(*file.faults, *doubled, *(f"{name}: {fault}" for name, fault in faults.items() if fault)),
        missing=tuple(name for name in network.adapters if name not in by_layer),
        alpha_source={name: "rank" if by_layer[name].alpha is None else "file" for name in matched},
    )
    return by_layer, report


def by_dotted_name(file: LoraFile, table: dict[str, str]) -> tuple[dict[str, FileAdapter], list[str]]:
    """The known adapters of a file by layer, and a complaint for each layer that the file names twice."""
    found: dict[str, FileAdapter] = {}
    doubled = []
    for base, adapter in file.adapters.items():
        name = table.get(canonical(base))
        if name in found:
            doubled.append(f"{name}: is in the file under two names")
        elif name is not None:
            found[name] = adapter
    return found, doubled


def _fault(network: Network, name: str, stored: FileAdapter) -> str:
    adapter = network.adapters[name]
    if stored.kind is not adapter.kind:
        return f"is {stored.kind.name}, but this run trains {adapter.kind.name}"
    if stored.rank != adapter.rank:
        return (
            f"rank {stored.rank} in the file, rank {adapter.rank} in this run (set network_dim = "
            f"{stored.rank}, or dim_from_weights)"
        )
    return stored.fault(adapter.layer.shape, adapter.kind.shapes(adapter.layer, adapter.rank))
