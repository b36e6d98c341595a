"""From the records of a file to the layers they change, and each layer's change under other names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.lora_tools.adapter import Adapter, adapter_of, change_of, inputs, swap_halves
from musubi_core.lora_tools.fused import join, split
from musubi_core.lora_tools.module_names import Model, Naming, Place
from musubi_core.lora_tools.records import MAIN, LoraSource, Record
from musubi_core.networks.reading import listed

_MAIN = {kind.name for kind in MAIN}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecords:
    """What a file says of one layer: one record, or one for each part of its rows."""

    layer: str
    naming: Naming  # of the file
    records: Mapping[int, Record]  # by part

    @property
    def cut(self) -> int:
        """Into how many parts the file's program divides the layer."""
        return len(self.naming.names[self.layer])

    def read(self, source: LoraSource) -> dict[int, Adapter]:
        return {part: adapter_of(record, source.read(record)) for part, record in self.records.items()}


def by_layer(source: LoraSource, model: Model) -> tuple[list[LayerRecords], list[Record]]:
    """The records by layer, and those whose names are none of this model's.

    Raises BadFileError when a file says two things of one layer.
    """
    found: dict[tuple[str, str], list[tuple[Place, Record]]] = {}
    strangers = []
    for record in source.records:
        place = model.place(record.base)
        if place is None:
            strangers.append(record)
        else:
            slot = "change" if record.kind in _MAIN else record.kind
            found.setdefault((place.layer, slot), []).append((place, record))
    doubled = [
        f"{layer} ({' and '.join(record.base for _, record in pairs)})"
        for (layer, _), pairs in found.items()
        if len({(place.whole, place.part) for place, _ in pairs}) < len(pairs)
        or len({place.whole for place, _ in pairs}) > 1
    ]
    if doubled:
        raise BadFileError(f"{source.path} has {len(doubled)} layers under two names: {listed(doubled)}.")
    layers = [
        LayerRecords(
            layer=layer, naming=pairs[0][0].naming, records={place.part: record for place, record in pairs}
        )
        for (layer, _), pairs in found.items()
    ]
    return layers, strangers


def renamed(
    group: LayerRecords, changes: Mapping[int, Adapter], naming: Naming, shape: tuple[int, ...]
) -> dict[int, Adapter]:
    """The changes of one layer by the parts of another naming. shape: the released weight's.

    Raises ValueError when that naming has no such layer or no form for the change.
    """
    if group.layer not in naming.names:
        raise ValueError("there is no such layer in the model it is converted for")
    if len({inputs(change) for change in changes.values()} - {()}) > 1:
        raise ValueError("its parts are for different numbers of inputs")
    swap = (group.layer in group.naming.swapped) != (group.layer in naming.swapped)
    if group.cut == len(naming.names[group.layer]):
        return {part: swap_halves(change) if swap else change for part, change in changes.items()}
    whole = changes[0] if group.cut == 1 else _joined(changes, group.cut, shape)
    whole = swap_halves(whole) if swap else whole
    count = len(naming.names[group.layer])
    if count == 1:
        return {0: whole}
    parts = split(whole, part_sizes(whole.rows, count, shape))
    return {part: change for part, change in enumerate(parts) if change is not None}


def _joined(changes: Mapping[int, Adapter], count: int, shape: tuple[int, ...]) -> Adapter:
    """The parts that are there, as a change of the whole layer."""
    known = {part: change.rows for part, change in changes.items()}
    outputs, inputs = shape[0], math.prod(shape[1:])
    first = next((rows for part, rows in known.items() if part < count - 1), None)
    if first is None:  # only the last part is there, which is the rest
        first = known[count - 1] * inputs // (outputs - (count - 1) * inputs)
    sizes = part_sizes(first * outputs // inputs, count, shape)
    return join([changes.get(part) for part in range(count)], sizes)


def part_sizes(rows: int, count: int, shape: tuple[int, ...]) -> list[int]:
    """Rows of each part: as many as the layer has inputs, and the rest for the last.

    A network of another width than the released one has the same proportions. Raises ValueError if not.
    """
    outputs, inputs = shape[0], math.prod(shape[1:])
    size = rows * inputs // outputs
    if size * outputs != rows * inputs or size < 1:
        raise ValueError(
            f"it has {rows} rows, which does not fit a layer of {outputs} rows and {inputs} columns"
        )
    return [*[size] * (count - 1), rows - (count - 1) * size]


def discrepancy(
    group: LayerRecords,
    before: Mapping[int, Adapter],
    after: Mapping[int, Adapter],
    naming: Naming,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> float:
    """How far apart the two changes move the layer's output for a random input, relative to that move.

    0 for kinds whose change is no matrix of its own: those only get other names.
    """
    width = max(math.prod(inputs(change)) for change in before.values())
    x = torch.randn(width, generator=generator, dtype=torch.float64)
    old, new = _moves(before, x), _moves(after, x)
    if old is None or new is None:
        return 0.0
    if (group.layer in group.naming.swapped) != (group.layer in naming.swapped):
        new = {part: torch.cat(move.chunk(2)[::-1]) for part, move in new.items()}
    cuts = group.cut, len(naming.names[group.layer])
    old, new = (_divided(side, cut, max(cuts), shape) for side, cut in zip((old, new), cuts, strict=True))
    nothing = torch.zeros(())
    parts = old.keys() | new.keys()
    apart = sum(float((old.get(part, nothing) - new.get(part, nothing)).norm()) ** 2 for part in parts)
    size = sum(float(move.norm()) ** 2 for move in old.values())
    return math.sqrt(apart / size) if size else math.sqrt(apart)


def _moves(changes: Mapping[int, Adapter], x: Tensor) -> dict[int, Tensor] | None:
    moves = {part: change_of(change, x) for part, change in changes.items()}
    known = {part: move for part, move in moves.items() if move is not None}
    return known if len(known) == len(moves) else None


def _divided(moves: dict[int, Tensor], cut: int, wanted: int, shape: tuple[int, ...]) -> dict[int, Tensor]:
    if cut == wanted:
        return moves
    return dict(enumerate(moves[0].split(part_sizes(len(moves[0]), wanted, shape))))
