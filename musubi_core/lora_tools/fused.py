"""One layer's change as the changes of its parts, and back: q, k and v in one matrix, or apart.

The algebra is exact (reference lora-and-fp8 3.6). A fused change of rank r whose up matrix is block-diagonal
gives each part its own columns, so that ranks do not grow on the way back; otherwise all parts share the down
matrix, which joining finds again. Shapes: see `adapter`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from musubi_core.lora_tools.adapter import Adapter, row_magnitudes, take_rows
from musubi_core.lora_tools.records import DORA, PRODUCTS

FACTORS = {kind: PRODUCTS[kind] for kind in ("lora", "loha")}  # whose rank is the sum of the parts' ranks


def split(adapter: Adapter, sizes: Sequence[int]) -> list[Adapter | None]:
    """The change of each part of the rows; None for a part that stays as it was while others change.

    Raises ValueError when this kind of change cannot be split there.
    """
    if sum(sizes) != adapter.rows:
        raise ValueError(f"it has {adapter.rows} rows, but the layer's parts have {list(sizes)}")
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    parts = [take_rows(adapter, end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if DORA in adapter.tensors:
        return [*parts]  # a part of zeros still has its magnitudes
    if adapter.kind not in FACTORS:
        return _without_zeros(parts)
    used = [_used_columns(part) for part in parts]
    if adapter.rank % len(parts) == 0 and _in_equal_blocks(used, adapter.rank):
        width = adapter.rank // len(parts)
        return [_narrowed(part, range(n * width, (n + 1) * width)) for n, part in enumerate(parts)]
    if not any(used):
        return [*parts]
    if _apart(used):
        owned = _with_idle_columns(used, adapter.rank)
        return [_narrowed(part, own) if own else None for part, own in zip(parts, owned, strict=True)]
    return [part if own else None for part, own in zip(parts, used, strict=True)]


def _without_zeros(parts: Sequence[Adapter]) -> list[Adapter | None]:
    changed = [any(part.tensors[name].any() for name in part.row_parts) for part in parts]
    return [part if there or not any(changed) else None for part, there in zip(parts, changed, strict=True)]


def _used_columns(part: Adapter) -> set[int]:
    """Which of the r columns have any number other than zero in these rows."""
    found = [part.tensors[up].flatten(1).any(dim=0) for up, _ in FACTORS[part.kind]]
    return set(torch.stack(found).any(dim=0).nonzero().flatten().tolist())


def _in_equal_blocks(used: Sequence[set[int]], rank: int) -> bool:
    width = rank // len(used)
    return all(own <= set(range(n * width, (n + 1) * width)) for n, own in enumerate(used))


def _apart(used: Sequence[set[int]]) -> bool:
    """Whether each part has columns of its own, one part after the other."""
    edges = [(min(own), max(own)) for own in used if own]
    return all(before[1] < after[0] for before, after in itertools.pairwise(edges))


def _with_idle_columns(used: Sequence[set[int]], rank: int) -> list[list[int]]:
    """Columns of each part in order; one that nobody uses goes with the one before it."""
    owner = {column: n for n, own in enumerate(used) for column in own}
    owned: list[list[int]] = [[] for _ in used]
    current = next(n for n, own in enumerate(used) if own)
    for column in range(rank):
        current = owner.get(column, current)
        owned[current].append(column)
    return owned


def _narrowed(part: Adapter, own: Sequence[int]) -> Adapter:
    """The same change with only these of its r columns; alpha / rank stays."""
    chosen = torch.tensor(list(own))
    tensors = dict(part.tensors)
    for up, down in FACTORS[part.kind]:
        tensors[up], tensors[down] = tensors[up][:, chosen], tensors[down][chosen]
    alpha = None if part.alpha is None else part.alpha * len(own) / part.rank
    return dataclasses.replace(part, tensors=tensors, rank=len(own), alpha=alpha)


def join(parts: Sequence[Adapter | None], sizes: Sequence[int]) -> Adapter:
    """One change of all rows; None stands for a part without a change.

    Raises ValueError when these changes are not one of their kind.
    """
    there = [part for part in parts if part is not None]
    first = there[0]
    kinds = sorted({part.kind for part in there})
    if len(kinds) > 1:
        raise ValueError(f"its parts are of different kinds: {' and '.join(kinds)}")
    for part, size in zip(parts, sizes, strict=True):
        if part is not None and part.rows != size:
            raise ValueError(f"a part has {part.rows} rows where {size} were expected")
    magnitudes = _joined_magnitudes(parts)
    if _alike(there):
        joined = _stacked(first, parts, sizes)
    elif first.kind in FACTORS:
        joined = _block_diagonal(parts, sizes)
    else:
        raise ValueError(f"parts that are {first.kind} with factors of their own are no single {first.kind}")
    return dataclasses.replace(joined, tensors={**joined.tensors, **magnitudes})


def _joined_magnitudes(parts: Sequence[Adapter | None]) -> dict[str, Tensor]:
    with_dora = [part is not None and DORA in part.tensors for part in parts]
    if not any(with_dora):
        return {}
    if not all(with_dora):
        raise ValueError("only some of its parts have DoRA magnitudes")
    return {DORA: torch.cat([row_magnitudes(part) for part in parts if part is not None])}


def _alike(parts: Sequence[Adapter]) -> bool:
    """Whether the parts differ in their rows only, so that stacking these is all."""
    first, *others = [(part.alpha, _shared(part)) for part in parts]
    return all(
        alpha == first[0]
        and shared.keys() == first[1].keys()
        and all(torch.equal(tensor, first[1][name]) for name, tensor in shared.items())
        for alpha, shared in others
    )


def _shared(part: Adapter) -> dict[str, Tensor]:
    return {name: t for name, t in part.tensors.items() if name not in (*part.row_parts, DORA)}


def _stacked(first: Adapter, parts: Sequence[Adapter | None], sizes: Sequence[int]) -> Adapter:
    tensors = {name: tensor for name, tensor in first.tensors.items() if name not in first.row_parts}
    for name in dict.fromkeys(name for part in parts if part for name in part.row_parts):
        model = next(part.tensors[name] for part in parts if part and name in part.tensors)
        tensors[name] = torch.cat(
            [
                part.tensors[name] if part and name in part.tensors else _zeros(model, size, first.step)
                for part, size in zip(parts, sizes, strict=True)
            ]
        )
    return dataclasses.replace(first, tensors=tensors)


def _zeros(model: Tensor, size: int, step: int) -> Tensor:
    if size % step:
        raise ValueError(f"a LoKr with blocks of {step} rows cannot leave out {size} rows")
    return model.new_zeros(size // step, *model.shape[1:])


def _block_diagonal(parts: Sequence[Adapter | None], sizes: Sequence[int]) -> Adapter:
    """Rank sum r. alpha / rank is that of the first part; the others' up matrices make up for theirs."""
    there = [part for part in parts if part is not None]
    kind, scale = there[0].kind, there[0].scale
    tensors: dict[str, Tensor] = {}
    for index, (up, down) in enumerate(FACTORS[kind]):
        ratios = [part.scale / scale if index == 0 else 1.0 for part in there]
        ups = [_times(part.tensors[up], ratio) for part, ratio in zip(there, ratios, strict=True)]
        tensors[up] = _diagonal(ups, [part is not None for part in parts], sizes)
        tensors[down] = torch.cat([part.tensors[down] for part in there])
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    rank = sum(part.rank for part in there)
    return Adapter(kind=kind, tensors=tensors, rank=rank, alpha=scale * rank)


def _diagonal(blocks: Sequence[Tensor], there: Sequence[bool], sizes: Sequence[int]) -> Tensor:
    """(sum o, sum r, 1...): each block (o, r, 1...) in rows and columns of its own, zeros elsewhere."""
    dtype = functools.reduce(torch.promote_types, (block.dtype for block in blocks))
    width = sum(block.shape[1] for block in blocks)
    total = blocks[0].new_zeros(sum(sizes), width, *blocks[0].shape[2:], dtype=dtype)
    row = column = 0
    waiting = iter(blocks)
    for size, present in zip(sizes, there, strict=True):
        if present:
            block = next(waiting)
            total[row : row + size, column : column + block.shape[1]] = block
            column += block.shape[1]
        row += size
    return total


def _times(tensor: Tensor, factor: float) -> Tensor:
    """The product, in the same number format where that is exact and in float32 otherwise."""
    product = tensor.double() * factor
    if math.frexp(factor)[0] == 0.5 and torch.equal(product.to(tensor.dtype).double(), product):
        return product.to(tensor.dtype)
    return product.to(torch.promote_types(tensor.dtype, torch.float32))
