"""Everything that a converted file will hold, found out before the first byte is written.

Every layer is read, renamed and encoded once for the plan, which keeps names and shapes only, and once more
while the file is written: that costs little, shows every fault in time, and holds a few tensors at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.lora_tools.adapter import Adapter
from musubi_core.lora_tools.convert_layers import LayerRecords, discrepancy, renamed
from musubi_core.lora_tools.lora_formats import LoraFormat
from musubi_core.lora_tools.module_names import Model, Naming
from musubi_core.lora_tools.peft_settings import Strength
from musubi_core.lora_tools.records import ALPHA, DORA, LoraSource, split_key

CHECKED = 8  # layers whose effect is compared on random numbers
READY = 4  # layers kept while their tensors are written, since parts of one do not follow each other


class Stopped(Exception):
    """Leaves the files as they were."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """infos: what the file will hold. owner: the layer that makes each tensor. alphas: ready ones.

    lines: (names in the file, names in the new one) of each layer. strengths: what PEFT must be told.
    faults: layers that have no form in the new file, and why.
    """

    infos: dict[str, TensorInfo] = field(default_factory=dict)
    owner: dict[str, LayerRecords] = field(default_factory=dict)
    alphas: dict[str, Tensor] = field(default_factory=dict)
    lines: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    strengths: dict[str, Strength] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    dora: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How layers are rewritten: from which file, in terms of which model, in which format."""

    source: LoraSource
    model: Model
    naming: Naming
    format: LoraFormat

    def changes(self, group: LayerRecords) -> tuple[dict[int, Adapter], dict[int, Adapter]]:
        """The layer's changes as they are in the file and under the other naming, by part."""
        before = group.read(self.source)
        return before, renamed(group, before, self.naming, self.model.layers[group.layer])

    def encoded(self, group: LayerRecords, changes: Mapping[int, Adapter]) -> dict[str, Tensor]:
        names = self.naming.names[group.layer]
        tensors: dict[str, Tensor] = {}
        for part, change in changes.items():
            tensors |= self.format.encode(names[part], change)
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def tensors(self, group: LayerRecords) -> dict[str, Tensor]:
        """What the new file holds of a layer. Raises ValueError when there is no form for it."""
        return self.encoded(group, self.changes(group)[1])


def make_plan(
    conversion: Conversion, groups: list[LayerRecords], emit: Listener, should_stop: ShouldStop
) -> Plan:
    """Read, rename, encode and check every layer. Raises BadFileError for what is not finite, Stopped."""
    plan = Plan()
    generator = torch.Generator().manual_seed(0)
    every = max(1, len(groups) // CHECKED)
    for index, group in enumerate(groups):
        if should_stop():
            raise Stopped
        bases = tuple(record.base for record in group.records.values())
        try:
            before, after = conversion.changes(group)
            tensors = conversion.encoded(group, after)
        except ValueError as fault:
            plan.faults.append(f"{', '.join(bases)}: {fault}")
            continue
        if index % every == 0:
            _check(conversion, group, before, after, tensors, generator)
        _add(plan, conversion, group, bases, after, tensors)
        emit(Progress(stage="read", done=index + 1, total=len(groups), text=group.layer))
    return plan


def _add(
    plan: Plan,
    conversion: Conversion,
    group: LayerRecords,
    bases: tuple[str, ...],
    after: Mapping[int, Adapter],
    tensors: Mapping[str, Tensor],
) -> None:
    names = conversion.naming.names[group.layer]
    for name, tensor in tensors.items():
        plan.infos[name] = TensorInfo(
            shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
        )
        plan.owner[name] = group
        if name.endswith(f".{ALPHA}"):
            plan.alphas[name] = tensor
    for part, change in after.items():
        plan.strengths[names[part]] = Strength(rank=change.rank, alpha=change.alpha or 0.0)
        plan.dora += DORA in change.tensors
    plan.lines.append((bases, tuple(dict.fromkeys(split_key(name)[0] for name in tensors))))


def _check(
    conversion: Conversion,
    group: LayerRecords,
    before: Mapping[int, Adapter],
    after: Mapping[int, Adapter],
    tensors: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Compare what the two files do to a random input. Raises BadFileError when they do not agree."""
    names = conversion.naming.names[group.layer]
    read_back = {part: _read_back(conversion.format, names[part], change) for part, change in after.items()}
    coarsest = max(torch.finfo(tensor.dtype).eps for tensor in tensors.values())
    shape = conversion.model.layers[group.layer]
    error = discrepancy(group, before, read_back, conversion.naming, shape, generator)
    if not error <= max(1e-6, 4 * coarsest):
        raise BadFileError(
            f"{conversion.source.path}: {group.layer} would change by {error:.2g} of its effect in the new "
            "file. Nothing was written. Please report this."
        )


def _read_back(form: LoraFormat, name: str, change: Adapter) -> Adapter:
    """The change that a reader of the new file finds."""
    parts = {split_key(key)[1]: tensor for key, tensor in form.encode(name, change).items()}
    alpha = parts.pop(ALPHA, None)
    if alpha is not None:
        stated: float | None = float(alpha)
    else:
        stated = change.alpha if form.settings else float(change.rank)
    return Adapter(kind=change.kind, tensors=parts, rank=change.rank, alpha=stated)


class Maker:
    """Makes the tensors of a planned file in any order, at the cost of a layer when others came between."""

    def __init__(self, conversion: Conversion, plan: Plan) -> None:
        self._conversion = conversion
        self._plan = plan
        self._ready: dict[int, dict[str, Tensor]] = {}

    def make(self, name: str) -> Tensor:
        if name in self._plan.alphas:
            return self._plan.alphas[name]
        group = self._plan.owner[name]
        tensors = self._ready.pop(id(group), None) or self._conversion.tensors(group)
        self._ready[id(group)] = tensors  # the latest stands last
        while len(self._ready) > READY:
            del self._ready[next(iter(self._ready))]
        return tensors[name]
