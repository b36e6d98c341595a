"""Cached items as batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from musubi_core.data.cache_file import VARLEN, not_finite, read_cache
from musubi_core.data.order import BatchPlan
from musubi_core.data.training_set import CachedItem
from musubi_core.errors import BadFileError

Batch: TypeAlias = "dict[str, Tensor | list[Tensor]]"
LoadedItem: TypeAlias = "dict[str, Tensor]"  # canonical names, without a batch axis


class ItemMemory:
    """Items that were read once, kept as long as all of them together fit into `limit` bytes.

    For small datasets, whose items come round again within seconds. The first items stay; there is no use in
    replacing them, because every epoch asks for all. Threads may share one.
    """

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._items: dict[Path, LoadedItem] = {}

    def __call__(self, item: CachedItem) -> LoadedItem:
        """The tensors of an item, not to be changed in place. Raises BadFileError as `load_item`."""
        found = self._items.get(item.latents)
        if found is None:
            found = load_item(item)
            size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
            if size <= self._room:
                self._room -= size
                self._items[item.latents] = found
        return found


def load_batch(plan: BatchPlan, load: Callable[[CachedItem], LoadedItem] | None = None) -> Batch:
    """The tensors of a batch by canonical name, on the CPU, in the dtype they were cached in.

    Each is stacked over the batch, (B, ...), except tensors of varying length, which are lists of B tensors.
    load: `load_item` when not given, or an ItemMemory.
    Raises BadFileError naming the file: it is gone, damaged, changed since the set was opened, or holds NaN.
    """
    return stacked([(load or load_item)(sample.item) for sample in plan.samples])


def stacked(items: Sequence[Mapping[str, Tensor]]) -> Batch:
    """The tensors of items as those of one batch, by canonical name; those of varying length as lists."""
    batch: Batch = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if name.startswith(VARLEN):
            batch[name.removeprefix(VARLEN)] = values
        else:
            batch[name] = torch.stack(values)
    return batch


def load_item(item: CachedItem) -> LoadedItem:
    """The tensors of one item by the names they have in the files."""
    tensors: dict[str, Tensor] = {}
    for path in (item.latents, item.text):
        found = read_cache(path)[1]
        if bad := not_finite(found):
            raise BadFileError(
                f"{path} holds NaN or infinity in {bad}. It was made from {item.source}. "
                "Delete this cache file and run caching again."
            )
        tensors |= found
    shapes = tuple(
        sorted(
            (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
            if not name.startswith(VARLEN)
        )
    )
    if shapes != item.shapes or tuple(sorted(n for n in tensors if n.startswith(VARLEN))) != item.lists:
        raise BadFileError(
            f"{item.latents} or {item.text} changed while they were in use. "
            "Start the run again, after caching has come to its end."
        )
    return tensors


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of dictionaries, lists and tuples with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(one, change) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(one, change) for one in value)
    return value
