"""One change of one layer, in memory: its rows, and what it does to a vector.

Shapes: o rows and i columns of the layer's weight (a kernel counts as columns), r rank. LoKr: the weight is
w1 (x) w2 with w1 (l, m) and w2 (k, n), so o = l * k and i = m * n.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.lora_tools.records import DORA, DOWN, TUCKER, UP, Record

# Tensors whose first axis is the layer's rows. LoKr is apart: a row of w1 stands for k rows of the layer.
ROWS = {
    "lora": (UP,),
    "loha": ("hada_w1_a", "hada_w2_a"),
    "lokr": ("lokr_w1", "lokr_w1_a"),
    "diff": ("diff", "diff_b"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The tensors of one record, without alpha, by part."""

    kind: str
    tensors: Mapping[str, Tensor]
    rank: int
    alpha: float | None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank and self.alpha is not None else 1.0

    @property
    def row_parts(self) -> tuple[str, ...]:
        """The tensors that rows are taken from. Raises ValueError for kinds whose rows belong together."""
        if self.kind not in ROWS or TUCKER & set(self.tensors):
            form = f"{self.kind} in Tucker form" if self.kind in ROWS else self.kind
            raise ValueError(f"the rows of a change of kind {form} cannot be taken apart or joined")
        return tuple(part for part in ROWS[self.kind] if part in self.tensors)

    @property
    def step(self) -> int:
        """How many rows of the layer one row of a row part stands for."""
        if self.kind != "lokr":
            return 1
        return self.tensors["lokr_w2" if "lokr_w2" in self.tensors else "lokr_w2_a"].shape[0]

    @property
    def rows(self) -> int:
        return self.tensors[self.row_parts[0]].shape[0] * self.step


def adapter_of(record: Record, tensors: Mapping[str, Tensor]) -> Adapter:
    """The record's change, ready to be computed with.

    8-bit numbers become bfloat16, which holds them all. DoRA's magnitudes of the rows become a column, as all
    but PEFT store them.
    """
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor
        for name, tensor in tensors.items()
    }
    magnitudes = tensors.get(DORA)
    if magnitudes is not None and magnitudes.ndim == 1:
        axes = tensors[DOWN].ndim if DOWN in tensors else 2
        tensors = {**tensors, DORA: magnitudes.reshape(-1, *[1] * (axes - 1))}
    return Adapter(kind=record.kind, tensors=tensors, rank=record.rank, alpha=record.alpha)


def take_rows(adapter: Adapter, start: int, stop: int) -> Adapter:
    """The change of the rows [start, stop) alone. Raises ValueError when the kind does not allow it."""
    if start % adapter.step or stop % adapter.step:
        raise ValueError(
            f"a LoKr with blocks of {adapter.step} rows cannot be cut at rows {start} and {stop}"
        )
    return _with_rows(adapter, lambda rows, step: rows[start // step : stop // step].clone())


def swap_halves(adapter: Adapter) -> Adapter:
    """The same change with the second half of the rows first. Raises ValueError for an odd number of rows."""
    if adapter.rows % (2 * adapter.step):
        raise ValueError(f"{adapter.rows} rows in steps of {adapter.step} have no two halves")
    return _with_rows(adapter, lambda rows, _: torch.cat([*rows.chunk(2)][::-1]))


def _with_rows(adapter: Adapter, change: Callable[[Tensor, int], Tensor]) -> Adapter:
    tensors = dict(adapter.tensors)
    for part in adapter.row_parts:
        tensors[part] = change(tensors[part], adapter.step)
    if DORA in tensors:
        tensors[DORA] = change(row_magnitudes(adapter), 1)
    return dataclasses.replace(adapter, tensors=tensors)


def row_magnitudes(adapter: Adapter) -> Tensor:
    """DoRA's magnitude of each row, (o, ...). Raises ValueError when it has one for each column instead."""
    magnitudes = adapter.tensors[DORA]
    if magnitudes.ndim and magnitudes.shape[0] == adapter.rows == magnitudes.numel():
        return magnitudes
    raise ValueError(
        f"its DoRA has magnitudes of shape {list(magnitudes.shape)}, by columns, which run over all rows of "
        "the layer"
    )


def change_of(adapter: Adapter, x: Tensor) -> Tensor | None:
    """What the change adds to the layer's output for x (i,): (o,) in float64, without DoRA's magnitudes.

    None for kinds whose change is not a matrix of their own (a change of the bias is added as it is).
    """
    t = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    if TUCKER & set(t):
        return None
    if adapter.kind == "lora":
        return adapter.scale * (t[UP].flatten(1) @ (t[DOWN].flatten(1) @ x))
    if adapter.kind == "loha":
        middle = (t["hada_w1_b"] * x) @ t["hada_w2_b"].T
        return adapter.scale * ((t["hada_w1_a"] @ middle) * t["hada_w2_a"]).sum(dim=1)
    if adapter.kind == "lokr":
        w1, w2 = (
            t[name] if name in t else t[f"{name}_a"] @ t[f"{name}_b"] for name in ("lokr_w1", "lokr_w2")
        )
        w2 = w2.flatten(1)
        return adapter.scale * (w1 @ x.reshape(w1.shape[1], -1) @ w2.T).flatten()
    if adapter.kind == "diff":
        parts = [t["diff"].reshape(len(t["diff"]), -1) @ x] if "diff" in t else []
        return sum(parts + ([t["diff_b"]] if "diff_b" in t else []), torch.zeros((), dtype=torch.float64))
    return None


def inputs(adapter: Adapter) -> tuple[int, ...]:
    """The layer's columns as an adapter has them, mostly (i,); () where the tensors do not tell."""
    t = adapter.tensors
    if adapter.kind == "lora":
        return tuple(t[DOWN].shape[1:])
    if adapter.kind == "loha":
        return tuple(t["hada_w1_b"].shape[1:])
    if adapter.kind == "lokr":
        w1, w2 = (t[name] if name in t else t[f"{name}_b"] for name in ("lokr_w1", "lokr_w2"))
        return (w1.shape[1] * math.prod(w2.shape[1:]),)
    return tuple(t["diff"].shape[1:]) if "diff" in t else ()
