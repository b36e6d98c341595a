"""The adapters inside a LoRA file, by the names of the layers of one model. Nothing is judged here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.files.tensors import read_tensors
from musubi_core.networks.kind import Kind
from musubi_core.networks.kinds import KINDS
from musubi_core.networks.naming import canonical, similar

SHOWN = 5  # names listed in a message; searching near misses for thousands would take minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAdapter:
    """The tensors of one adapter, by the own names of its kind."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    alpha: float | None  # None: the file has none, which means alpha = rank

    @property
    def rank(self) -> int:
        return self.kind.rank_of(self.tensors)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def fault(self, shape: tuple[int, ...], expected: Mapping[str, tuple[int, ...]]) -> str:
        """Why these tensors do not fit a layer whose weight has `shape`, or ""."""
        for name, size in expected.items():
            found = tuple(self.tensors[name].shape)
            if found != size:
                return f"{name} is {list(found)}, but a weight of {list(shape)} needs {list(size)}"
        return ""


@dataclass(slots=True, kw_only=True)
class LoraFile:
    """A LoRA file, grouped into adapters by the names that the file uses."""

    path: Path
    adapters: dict[str, FileAdapter] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # keys that belong to no kind of adapter
    faults: list[str] = field(default_factory=list)  # adapters that are incomplete or not finite


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file of any accepted spelling. Raises BadFileError when it is no safetensors file."""
    file = LoraFile(path=path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        base, suffix = _split(key)
        if suffix:
            groups.setdefault(base, {})[suffix] = tensor
        else:
            file.unknown.append(key)
    names = Counter(canonical(base) for base in groups)
    for base, tensors in groups.items():
        fault = _fault(tensors) or ("is in the file twice" if names[canonical(base)] > 1 else "")
        if fault:
            file.faults.append(f"{base}: {fault}")
            continue
        alpha = tensors.pop("alpha", None)
        file.adapters[base] = FileAdapter(
            kind=_kind_of(tensors), tensors=tensors, alpha=None if alpha is None else float(alpha.item())
        )
    return file


def listed(items: Sequence[str]) -> str:
    """The first few items for a message, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def with_similar(names: Sequence[str], table: Mapping[str, str]) -> str:
    """The first few unknown names for a message, each with up to three layers like it."""
    near = [(name, similar(name, table)) for name in names[:SHOWN]]
    shown = [name + (f" (nearest: {', '.join(close)})" if close else "") for name, close in near]
    return listed([*shown, *names[SHOWN:]])


_SUFFIXES = {
    "alpha": "alpha",
    **{name: name for kind in KINDS.values() for name in kind.tensors},
    **{alias: name for kind in KINDS.values() for alias, name in kind.aliases.items()},
}


def _split(key: str) -> tuple[str, str]:
    """(adapter's name in the file, own name of the tensor); the second is "" for a foreign key."""
    for suffix, own in _SUFFIXES.items():
        if key.endswith("." + suffix):
            return key.removesuffix("." + suffix), own
    return key, ""


def _kind_of(names: Mapping[str, Tensor]) -> Kind:
    return next(kind for kind in KINDS.values() if set(kind.tensors) <= set(names))


def _fault(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the tensors of one adapter, whatever model it is for."""
    if not any(set(kind.tensors) <= set(tensors) for kind in KINDS.values()):
        return f"has {', '.join(tensors)}, but a tensor of the pair is missing"
    alpha = tensors.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or not math.isfinite(alpha.item()) or alpha.item() == 0):
        return "its alpha is not one number other than 0"
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    return f"{', '.join(broken)} contains NaN or infinity" if broken else ""
