"""The LoRA layers of a file as matrices, and LoRA files written layer by layer.

Shapes: o outputs and i inputs of the layer, *k its kernel, r rank. down (r, i, *k), up (o, r, *1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made
from musubi_core.lora_tools.records import DORA, DOWN, MID, UP, LoraSource, Record
from musubi_core.networks.reading import listed

_PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The size of the weight that a LoRA changes."""

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        return self.inputs * prod(self.kernel)

    def down(self, rank: int) -> tuple[int, ...]:
        return (rank, self.inputs, *self.kernel)

    def up(self, rank: int) -> tuple[int, ...]:
        return (self.outputs, rank, *[1] * len(self.kernel))


def layer_shape(record: Record) -> LayerShape:
    """Of a "lora" record."""
    up, down = record.shapes[UP], record.shapes[DOWN]
    kernel = record.shapes[MID][2:] if MID in record.shapes else down[2:]
    return LayerShape(outputs=up[0], inputs=down[1], kernel=kernel)


def matrices(record: Record, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(o, r) and (r, i * k) in float64, so that scale * up @ down is the change as a matrix.

    A third factor in the middle (of LyCORIS' Tucker form) is multiplied into the second.
    """
    up, down = tensors[UP].double().flatten(1), tensors[DOWN].double()
    if MID in tensors:
        down = torch.einsum("pq...,qi->pi...", tensors[MID].double(), down.flatten(1))
    return up, down.flatten(1)


def require_lora(source: LoraSource, *, job: str, also: Sequence[str] = ()) -> tuple[Record, ...]:
    """All records of a file that holds plain LoRA, and perhaps the kinds in `also`. Raises BadFileError."""
    source.refuse_unknown()
    foreign = [f"{one.base} is {one.kind}" for one in source.records if one.kind not in ("lora", *also)]
    foreign += [f"{one.base} is DoRA" for one in source.records if DORA in one.keys]
    if foreign:
        raise BadFileError(f"{source.path}: {job} works on plain LoRA, but {listed(foreign)}.")
    for one in source.records:
        if one.kind == "lora":
            check_factors(source.path, one)
    return source.records


def check_factors(path: Path, record: Record) -> None:
    """Raises BadFileError when up, middle and down of a "lora" record cannot be multiplied."""
    up, down, mid = record.shapes[UP], record.shapes[DOWN], record.shapes.get(MID)
    fits = prod(up[2:]) == 1 and (
        mid is None or (prod(down[2:]) == 1 and mid[:2] == (up[1], down[0]) and len(mid) > 2)
    )
    if not fits:
        shapes = ", ".join(f"{record.keys[part]} {list(shape)}" for part, shape in record.shapes.items())
        raise BadFileError(f"{path}: the shapes of {record.base} do not fit each other: {shapes}.")


def dtype_for(precision: str | None, stored: str) -> str:
    """The number format of a tensor in the output: the one asked for, else the file's own."""
    return _PRECISIONS[precision] if precision else stored


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayer:
    """One layer of a file to be written. alpha_key: "" where alpha = rank needs no tensor."""

    down_key: str
    up_key: str
    alpha_key: str
    shape: LayerShape
    rank: int
    alpha: float
    dtype: str

    def infos(self) -> dict[str, TensorInfo]:
        found = {
            self.down_key: TensorInfo(shape=self.shape.down(self.rank), dtype=self.dtype),
            self.up_key: TensorInfo(shape=self.shape.up(self.rank), dtype=self.dtype),
        }
        if self.alpha_key:
            found[self.alpha_key] = TensorInfo(shape=(), dtype="float32")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTensor:
    """A tensor of the output that is no factor of a layer."""

    info: TensorInfo
    make: Callable[[], Tensor]


Factors = Callable[[OutputLayer], tuple[Tensor, Tensor]]  # up (o, rank) and down (rank, i * k)


class _Stopped(Exception):
    """Leaves the file unwritten."""


def write_lora(
    path: Path,
    layers: Sequence[OutputLayer],
    factors: Factors,
    metadata: Mapping[str, str],
    *,
    others: Mapping[str, OtherTensor],
    emit: Listener,
    should_stop: ShouldStop,
    stage: str,
) -> bool:
    """Write a LoRA, one layer in memory at a time. factors is called once per layer.

    Returns False when stopped. Raises BadFileError for numbers that the format cannot hold; then there is no
    file.
    """
    infos = {name: info for layer in layers for name, info in layer.infos().items()}
    infos |= {name: other.info for name, other in others.items()}
    owner = {name: layer for layer in layers for name in layer.infos()}
    ready: dict[str, Tensor] = {}
    made = 0

    def make(name: str) -> Tensor:
        nonlocal made
        if should_stop():
            raise _Stopped
        made += 1
        emit(Progress(stage=stage, done=made, total=len(infos), text=name))
        if name in others:
            tensor = others[name].make()
        elif name == owner[name].alpha_key:
            tensor = torch.tensor(owner[name].alpha, dtype=torch.float32)
        else:
            if name not in ready:
                ready.update(_shaped(owner[name], *factors(owner[name])))
            tensor = ready.pop(name)
        return _finite(tensor.to(getattr(torch, infos[name].dtype)), name)

    try:
        write_made(path, infos, make, metadata, sshs_hashes=True)
    except _Stopped:
        return False
    return True


def _shaped(layer: OutputLayer, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    return {
        layer.up_key: up.reshape(layer.shape.up(layer.rank)),
        layer.down_key: down.reshape(layer.shape.down(layer.rank)),
    }


def _finite(tensor: Tensor, name: str) -> Tensor:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise BadFileError(
            f"{name} would hold NaN or infinity as {str(tensor.dtype).removeprefix('torch.')}. Use another "
            "save_precision, or look for the damaged file. Nothing was written."
        )
    return tensor
