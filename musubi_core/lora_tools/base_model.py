"""The weights of a base model by the names that LoRA files give them, read one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.stored_scales import read_unscaled, without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.lora_tools.module_names import Model, canonical, known_models, unknown_text
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec
from musubi_core.networks.naming import Substitutions, spellings


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a name in a LoRA file means: the rows [start, stop) of a layer; all of them when stop is None.

    swapped: the program that made the LoRA has the two halves of these rows the other way round.
    """

    layer: str
    start: int = 0
    stop: int | None = None
    swapped: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """A view of the part of a weight or bias that is meant."""
        return tensor[self.start : self.stop]

    def turned(self, rows: Tensor) -> Tensor:
        """These rows in the other program's order, or back."""
        return torch.cat(rows.chunk(2)[::-1]) if self.swapped else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """An open network. prefix: before its own names in the file. names: own names -> names in the file.

    table: {a layer's canonical name in LoRA files: its own dotted name}. model: how the programs call the
    layers of this architecture; None when that is not known.
    """

    checkpoint: Checkpoint
    spec: ArchSpec
    prefix: str
    names: Mapping[str, str]
    table: Mapping[str, str]
    model: Model | None

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor by its own name."""
        return self.checkpoint.header[self.names[name]].shape

    def target(self, base: str) -> Target | None:
        """What a LoRA means by `base`, in the naming of any program; None when it is not in this model."""
        own = self.table.get(canonical(base))
        if own is not None:
            return Target(layer=own)
        place = self.model.place(base) if self.model else None
        own = self.table.get(canonical(place.layer)) if place else None
        if place is None or own is None:
            return None
        swapped, count = place.layer in place.naming.swapped, len(place.naming.names[place.layer])
        if count == 1:
            return Target(layer=own, swapped=swapped)
        width = prod(self.shape(f"{own}.weight")[1:])  # each part has as many rows, the last all the rest
        stop = None if place.part == count - 1 else (place.part + 1) * width
        return Target(layer=own, start=place.part * width, stop=stop, swapped=swapped)

    def weight(self, layer: str) -> Tensor:
        """The weight of a layer as float32 numbers, scaled fp8 multiplied out."""
        return self.read(f"{layer}.weight")

    def read(self, name: str) -> Tensor:
        """A tensor by its own name, in float32."""
        return read_unscaled(self.checkpoint, self.names[name]).to(torch.float32)

    def targets(self, bases: Iterable[str], path: Path) -> dict[str, Target]:
        """`target` of each. Raises BadFileError when the LoRA in `path` names layers that are not here."""
        found = {base: self.target(base) for base in bases}
        unknown = [base for base, target in found.items() if target is None]
        if unknown:
            raise BadFileError(
                f"{path} has {len(unknown)} layers that {self.path} does not have: "
                f"{unknown_text(unknown, self.table)}. Give the base model that this LoRA was made for."
            )
        return {base: target for base, target in found.items() if target is not None}


@contextlib.contextmanager
def open_base(path: Path, named: str | None = None) -> Generator[BaseModel, None, None]:
    """Open the network in a file. named: its architecture, where the file cannot tell.

    Raises BadFileError for a file of no known architecture.
    """
    spec = architecture(named) if named else architecture_of(path)
    with open_checkpoint(path) as checkpoint:
        found = spec.detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{path} is no {spec.name} network: {spec.refuse(checkpoint.header)}")
        names = {
            name.removeprefix(found.prefix): name
            for name in without_helpers(checkpoint.header)
            if name.startswith(found.prefix)
        }
        table = layer_table(names, spec.lora_names.comfyui)
        yield BaseModel(
            checkpoint=checkpoint,
            spec=spec,
            prefix=found.prefix,
            names=names,
            table=table,
            model=known_models().get(spec.name),
        )


def layer_table(names: Iterable[str], substitutions: Substitutions) -> dict[str, str]:
    """{canonical name: layer} from the parameters' names in a file, whichever side of the table it is on.

    A file in ComfyUI's naming has the second column of `substitutions` in its names already, so those are
    also turned back. A spelling that two layers would share means neither.
    """
    back = tuple((new, old) for old, new in substitutions)
    table: dict[str, str] = {}
    shared = set()
    for name in names:
        layer, _, part = name.rpartition(".")
        if part != "weight":
            continue
        for spelling in (*spellings(layer, substitutions), *spellings(layer, back)):
            if table.setdefault(canonical(spelling), layer) != layer:
                shared.add(canonical(spelling))
    return {spelling: layer for spelling, layer in table.items() if spelling not in shared}
