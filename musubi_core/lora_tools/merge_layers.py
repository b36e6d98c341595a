"""What several LoRA files do to the same layers, whatever their programs call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from musubi_core.errors import BadFileError, MusubiError
from musubi_core.lora_tools.adapter import Adapter
from musubi_core.lora_tools.convert_layers import LayerRecords, by_layer, renamed
from musubi_core.lora_tools.dense import matrix_size
from musubi_core.lora_tools.layers import LayerShape, layer_shape
from musubi_core.lora_tools.module_names import Model, canonical, model_named, model_of
from musubi_core.lora_tools.records import ALPHA, LoraSource, Record
from musubi_core.networks.naming import underscored


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one file does to one layer. read: its tensors, alpha not among them."""

    path: Path
    record: Record
    multiplier: float
    read: Callable[[], dict[str, Tensor]]


@dataclass(slots=True, kw_only=True)
class Layer:
    """What all files together do to one layer. rank: of the result, known after the first pass."""

    shape: LayerShape
    parts: list[Part] = field(default_factory=list)
    rank: int = 0

    @property
    def plain(self) -> bool:
        return all(part.record.kind == "lora" for part in self.parts)

    @property
    def widest(self) -> int:
        """The rank that certainly holds the whole sum."""
        side = min(self.shape.outputs, self.shape.columns)
        return min(sum(part.record.rank for part in self.parts), side) if self.plain else side

    def add(self, part: Part) -> None:
        """Raises BadFileError for a second change by one file, and for a change of another size."""
        twice = [other.record.base for other in self.parts if other.path == part.path]
        if twice:
            raise BadFileError(f"{part.path} has one layer twice: {twice[0]} and {part.record.base}.")
        shape = shape_of(part)
        if (shape.outputs, shape.columns) != (self.shape.outputs, self.shape.columns):
            first = self.parts[0].path.name
            raise BadFileError(
                f"{part.path}: {part.record.base} changes a weight of {[shape.outputs, shape.columns]}, "
                f"but in {first} it is {[self.shape.outputs, self.shape.columns]}. They are for different "
                "models."
            )
        if self.parts and part.record.kind == "lora" and self.parts[0].record.kind != "lora":
            self.shape = shape  # knows the kernel
        self.parts.append(part)


def shape_of(part: Part) -> LayerShape:
    """Of the weight that is changed."""
    if part.record.kind == "lora":
        return layer_shape(part.record)
    rows, columns = matrix_size(part.record, part.path)
    return LayerShape(outputs=rows, inputs=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All changes of all files, and the model whose names tell which are of one layer."""

    parts: Sequence[Part]
    model: Model | None

    def key(self, base: str) -> str:
        """The same for all names of one layer."""
        place = self.model.place(base) if self.model else None
        return canonical(base) if place is None else f"{place.layer}.{place.part}"


def parts_of(sources: Sequence[LoraSource], multipliers: Sequence[float], named: str | None) -> Parts:
    """The changes of all files, each under the name that it has there.

    Where files divide layers differently (q, k and v as one or as three), all of them under the names that
    ComfyUI finds. named: the model, where names cannot tell. Raises BadFileError for changes that cannot be
    put together.
    """
    model = _model_of(sources, named)
    pairs = list(zip(sources, multipliers, strict=True))
    if model is None or _divided_alike(sources, model):
        found = [
            Part(path=source.path, record=record, multiplier=strength, read=partial(source.read, record))
            for source, strength in pairs
            for record in source.records
        ]
    else:
        found = [part for source, strength in pairs for part in _rewritten(source, strength, model)]
    return Parts(parts=found, model=model)


def _model_of(sources: Sequence[LoraSource], named: str | None) -> Model | None:
    """None when it cannot be told: then names must agree by themselves."""
    if named is not None:
        return model_named(named, "--architecture")
    bases = [record.base for source in sources for record in source.records]
    metadata = {key: text for source in sources for key, text in source.metadata.items() if text}
    try:
        return model_of(bases, metadata, " and ".join(source.path.name for source in sources))
    except MusubiError:
        return None


def _divided_alike(sources: Iterable[LoraSource], model: Model) -> bool:
    """Whether every layer has the same parts, in the same order of rows, in all files that change it."""
    forms: dict[str, set[tuple[int, bool]]] = {}
    for source in sources:
        for record in source.records:
            if place := model.place(record.base):
                count = len(place.naming.names[place.layer])
                swapped = place.layer in place.naming.swapped
                forms.setdefault(place.layer, set()).add((count, swapped))
    return all(len(found) == 1 for found in forms.values())


def _rewritten(source: LoraSource, multiplier: float, model: Model) -> list[Part]:
    """The changes of one file under ComfyUI's names; those of no layer of the model keep theirs."""
    groups, strangers = by_layer(source, model)
    found = [
        Part(path=source.path, record=record, multiplier=multiplier, read=partial(source.read, record))
        for record in strangers
    ]
    for group in groups:
        names = model.comfyui.names[group.layer]
        for place, change in _changes(source, group, model).items():
            found.append(
                Part(
                    path=source.path,
                    record=_record(underscored(names[place]), change),
                    multiplier=multiplier,
                    read=partial(_read, source, group, model, place),
                )
            )
    return found


def _changes(source: LoraSource, group: LayerRecords, model: Model) -> Mapping[int, Adapter]:
    try:
        return renamed(group, group.read(source), model.comfyui, model.layers[group.layer])
    except ValueError as fault:
        names = ", ".join(record.base for record in group.records.values())
        raise BadFileError(
            f"{source.path}: {names} cannot be put under the names of the other files: {fault}. Merge files "
            "that name their layers alike, or merge into a model."
        ) from fault


def _read(source: LoraSource, group: LayerRecords, model: Model, place: int) -> dict[str, Tensor]:
    return dict(_changes(source, group, model)[place].tensors)


def _record(base: str, change: Adapter) -> Record:
    """What a file would say of this change."""
    parts = [*change.tensors, *([ALPHA] if change.alpha is not None else [])]
    return Record(
        base=base,
        kind=change.kind,
        keys={part: f"{base}.{part}" for part in parts},
        shapes={part: tuple(tensor.shape) for part, tensor in change.tensors.items()},
        dtypes={part: str(tensor.dtype).removeprefix("torch.") for part, tensor in change.tensors.items()},
        rank=change.rank,
        alpha=change.alpha,
        alpha_source="tensor",
    )
