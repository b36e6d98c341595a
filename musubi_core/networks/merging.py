"""LoRA files merged into the base weights while these are read, before any quantising."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.networks.layer import Layer
from musubi_core.networks.naming import Substitutions, canonical, spelling_table, spellings
from musubi_core.networks.reading import LoraFile, listed, read_lora, with_similar


class WeightMerge:
    """A `LoadRequest.transform` that adds the changes of LoRA files to the weights they belong to.

    All files of one weight are summed in float32 and added once; the sum is returned in float32, so that the
    loader's own cast is the only rounding. Call `finish` when everything is loaded.
    """

    def __init__(self, files: Sequence[tuple[LoraFile, float]], substitutions: Substitutions) -> None:
        self.files = tuple(files)
        self.substitutions = substitutions
        self._waiting = [{canonical(base): base for base in file.adapters} for file, _ in self.files]
        self._seen: dict[str, str] = {}  # canonical name -> layer, of all weights that passed

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor called `name` in the model's own naming, with every file's change added.

        tensor: true numbers, that is with the scale of a quantised weight already multiplied out.
        """
        layer, _, part = name.rpartition(".")
        if part != "weight" or tensor.ndim < 2:
            return tensor
        accepted = spellings(layer, self.substitutions)
        self._seen.update(dict.fromkeys(accepted, layer))
        total: Tensor | None = None
        for (file, multiplier), waiting in zip(self.files, self._waiting, strict=True):
            spelled = [spelling for spelling in accepted if spelling in waiting]
            if len(spelled) > 1:
                raise BadFileError(f"{file.path} has {layer} twice, as {' and '.join(spelled)}.")
            for spelling in spelled:
                change = _change(file, waiting.pop(spelling), tensor).mul_(multiplier)
                total = change if total is None else total.add_(change)
        return tensor if total is None else total.add_(tensor.to(torch.float32))

    def finish(self) -> dict[Path, int]:
        """How many layers each file changed. Raises BadFileError when a name of a file was never used."""
        for (file, _), waiting in zip(self.files, self._waiting, strict=True):
            if waiting:
                raise _unknown(file, list(waiting.values()), self._seen)
        return {file.path: len(file.adapters) for file, _ in self.files}


def weight_transform(
    files: Sequence[tuple[Path, float]],
    substitutions: Substitutions,
    module_names: Collection[str] | None = None,
) -> WeightMerge:
    """Read LoRA files, each with its multiplier, for merging while a model is loaded.

    module_names: dotted names of the model's layers, when they are known before loading; a file of another
    model is then refused at once, otherwise by `WeightMerge.finish`. Raises BadFileError.
    """
    read = [(read_lora(path), multiplier) for path, multiplier in files]
    table = None if module_names is None else spelling_table(module_names, substitutions)
    for file, _ in read:
        foreign = [] if table is None else [base for base in file.adapters if canonical(base) not in table]
        if foreign or file.unknown:
            raise _unknown(file, [*foreign, *file.unknown], table or {})
        if file.faults or not file.adapters:
            faults = file.faults or ["it holds no adapter"]
            raise BadFileError(f"{file.path} cannot be merged: {listed(faults)}.")
    return WeightMerge(read, substitutions)


def _change(file: LoraFile, base: str, weight: Tensor) -> Tensor:
    """alpha / rank * delta for one weight, float32, on the weight's device."""
    adapter = file.adapters[base]
    outputs, inputs, *kernel = weight.shape
    layer = Layer(name=base, inputs=inputs, outputs=outputs, kernel=tuple(kernel))
    fault = adapter.fault(layer.shape, adapter.kind.shapes(layer, adapter.rank))
    if fault:
        raise BadFileError(f"{file.path}, {base}: {fault}. The file is for another model.")
    tensors = {name: tensor.to(weight.device) for name, tensor in adapter.tensors.items()}
    return adapter.kind.delta(tensors, layer.shape).mul_(adapter.scale)


def _unknown(file: LoraFile, names: Sequence[str], table: Mapping[str, str]) -> BadFileError:
    return BadFileError(
        f"{file.path} has {len(names)} names that belong to no layer of this model: "
        f"{with_similar(names, table)}. Give a LoRA that was made for this model."
    )
