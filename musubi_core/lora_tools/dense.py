"""The change of one layer as a whole matrix, for kinds that have no two factors (reference 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.lora_tools.layers import check_factors, layer_shape, matrices
from musubi_core.lora_tools.records import DORA, LoraSource, Record
from musubi_core.networks.reading import listed

DENSE = ("lora", "loha", "lokr")
_TUCKER = ("hada_t1", "lokr_t2")


def refuse_others(source: LoraSource, also: Sequence[str]) -> None:
    """Raises BadFileError for adapters whose change is not a matrix by itself."""
    source.refuse_unknown()
    bad = [f"{one.base} is {one.kind}" for one in source.records if one.kind not in (*DENSE, *also)]
    bad += [f"{one.base} is DoRA" for one in source.records if DORA in one.keys]
    bad += [
        f"{one.base} is {one.kind} in Tucker form" for one in source.records if set(_TUCKER) & set(one.keys)
    ]
    if bad:
        raise BadFileError(
            f"{source.path} cannot be merged: {listed(bad)}. LoRA, LoHa, LoKr and full differences can."
        )
    for record in source.records:
        if record.kind == "lora":
            check_factors(source.path, record)


def matrix_size(record: Record, path: Path) -> tuple[int, int]:
    """(rows, columns) of the change of a record of the kinds in DENSE, from its shapes alone."""
    shapes = record.shapes
    if record.kind == "lora":
        shape = layer_shape(record)
        return shape.outputs, shape.columns
    if record.kind == "loha":
        return shapes["hada_w1_a"][0], prod(shapes["hada_w1_b"][1:])
    rows, columns = 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        left, right = shapes.get(name) or shapes[f"{name}_a"], shapes.get(name) or shapes[f"{name}_b"]
        if len(left) < 2 or len(right) < 2:
            raise BadFileError(f"{path}: {record.base} has {name} of shape {list(left)}; expected a matrix.")
        rows, columns = rows * left[0], columns * prod(right[1:])
    return rows, columns


def dense_change(record: Record, tensors: Mapping[str, Tensor]) -> Tensor:
    """(o, i * k) float32, with the scale of the file."""
    if record.kind == "lora":
        up, down = matrices(record, tensors)
        return (up.float() @ down.float()) * record.scale
    if record.kind == "loha":
        first, second = (
            tensors[f"hada_{one}_a"].float() @ tensors[f"hada_{one}_b"].float().flatten(1)
            for one in ("w1", "w2")
        )
        return first * second * record.scale
    return _kronecker(_factor(tensors, "lokr_w1"), _factor(tensors, "lokr_w2")) * record.scale


def _factor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name in tensors:
        return tensors[name].float()
    return tensors[f"{name}_a"].float() @ tensors[f"{name}_b"].float().flatten(1)


def _kronecker(w1: Tensor, w2: Tensor) -> Tensor:
    """w1 (l, m) and w2 (k, n, *kernel) -> (l * k, m * n * kernel)."""
    return torch.kron(w1, w2.flatten(1))
