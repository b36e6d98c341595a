"""The weights of a base model by the names that LoRA files give them, read one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.stored_scales import read_unscaled, without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture, architectures
from musubi_core.models.spec import ArchSpec
from musubi_core.networks.naming import Substitutions, canonical, spellings, underscored
from musubi_core.networks.reading import with_similar


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """An open network. prefix: before its own names in the file. names: own names -> names in the file.

    table: {a layer's canonical name in LoRA files: its own dotted name}, in every accepted spelling.
    """

    checkpoint: Checkpoint
    spec: ArchSpec
    prefix: str
    names: Mapping[str, str]
    table: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    def layer_of(self, base: str) -> str | None:
        """The own name of the layer that a LoRA calls `base`."""
        return self.table.get(canonical(base))

    def weight(self, layer: str) -> Tensor:
        """The weight of a layer as float32 numbers, scaled fp8 multiplied out."""
        return self.read(f"{layer}.weight")

    def read(self, name: str) -> Tensor:
        """A tensor by its own name, in float32."""
        return read_unscaled(self.checkpoint, self.names[name]).to(torch.float32)

    def require(self, bases: Iterable[str], path: Path) -> None:
        """Raises BadFileError when the LoRA in `path` names layers that this model does not have."""
        unknown = [base for base in bases if self.layer_of(base) is None]
        if unknown:
            raise BadFileError(
                f"{path} has {len(unknown)} layers that {self.path} does not have: "
                f"{with_similar(unknown, self.table)}. Give the base model that this LoRA was made for."
            )


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
        yield BaseModel(checkpoint=checkpoint, spec=spec, prefix=found.prefix, names=names, table=table)


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
            if table.setdefault(spelling, layer) != layer:
                shared.add(spelling)
    return {spelling: layer for spelling, layer in table.items() if spelling not in shared}


def one_spelling(base: str) -> str:
    """A name that all spellings of one layer have in common, for comparing files without a model."""
    name = canonical(base)
    for spec in architectures():
        for old, new in spec.lora_names.comfyui:
            name = name.replace(underscored(old).removeprefix("lora_unet_"), new.replace(".", "_"))
    return name
