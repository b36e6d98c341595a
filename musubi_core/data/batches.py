"""Cached items as batches of tensors."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.data.cache_file import VARLEN, not_finite, read_cache
from musubi_core.data.order import BatchPlan, PlannedSample
from musubi_core.errors import BadFileError

Batch: TypeAlias = "dict[str, Tensor | list[Tensor]]"


def load_batch(plan: BatchPlan) -> Batch:
    """The tensors of a batch by canonical name, on the CPU, in the dtype they were cached in.

    Each is stacked over the batch, (B, ...), except tensors of varying length, which are lists of B tensors.
    Raises BadFileError naming the file: it is gone, damaged, changed since the set was opened, or holds NaN.
    """
    samples = [_load_sample(sample) for sample in plan.samples]
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name.startswith(VARLEN):
            batch[name.removeprefix(VARLEN)] = values
        else:
            batch[name] = torch.stack(values)
    return batch


def _load_sample(sample: PlannedSample) -> dict[str, Tensor]:
    item = sample.item
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
