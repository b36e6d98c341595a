"""What became of each kind of layer, in words, and their singular values as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.files.replace import replace_file
from musubi_core.lora_tools.module_names import PREFIXES
from musubi_core.pictures.plot import COLOURS, curves

_BLOCK = re.compile(r"(?<=[._])\d+(?=[._]|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFate:
    """What was kept of one layer's change.

    before: its rank, 0 where it had none. after: the new one, 0 where the layer is left out. whole, lost:
    norms of the change and of what is missing. s: (k,) its singular values, falling, as many as are known.
    """

    base: str
    before: int
    after: int
    whole: float
    lost: float
    s: Tensor


def kind_of(base: str) -> str:
    """What layers of one sort share: "lora_unet_blocks_7_attn_q" -> "blocks_*_attn_q"."""
    prefix = next((prefix for prefix in PREFIXES if base.startswith(prefix)), "")
    return _BLOCK.sub("*", base.removeprefix(prefix), count=1)


def report(fates: Sequence[LayerFate]) -> list[str]:
    """One line per kind of layer, and one for all: ranks before and after, and the share of the norm lost."""
    return [*(_line(kind, group) for kind, group in _by_kind(fates).items()), _line("all", fates)]


def _by_kind(fates: Sequence[LayerFate]) -> dict[str, list[LayerFate]]:
    groups: dict[str, list[LayerFate]] = {}
    for fate in fates:
        groups.setdefault(kind_of(fate.base), []).append(fate)
    return groups


def _line(kind: str, fates: Sequence[LayerFate]) -> str:
    before, after = [one.before for one in fates], [one.after for one in fates]
    whole = sum(one.whole**2 for one in fates)
    lost = (sum(one.lost**2 for one in fates) / whole) ** 0.5 if whole else 0.0
    ranks = f"{_span(before)} to {_span(after)}" if any(before) and before != after else _span(after)
    text = f"{kind}: {_layers(len(fates))}, rank {ranks}, {lost:.2%} of the change lost"
    gone = after.count(0)
    return f"{text}, {_layers(gone)} left out." if gone else f"{text}."


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def spectrum_picture(fates: Sequence[LayerFate], path: Path, *, cut: bool) -> None:
    """Mean log10 of the singular values of each kind of layer, as a PNG; the kinds that change most.

    cut: mark the mean rank that was kept.
    """
    groups = _by_kind([fate for fate in fates if len(fate.s)])
    drawn = {kind: _mean_curve([fate.s for fate in group]) for kind, group in groups.items()}
    largest = sorted(drawn, key=lambda kind: -drawn[kind][0][1])[: len(COLOURS)]
    means = {kind: sum(fate.after for fate in groups[kind]) / len(groups[kind]) for kind in largest}
    image = curves(
        {kind: drawn[kind] for kind in largest},
        title="log10 of the singular values, mean of the layers of a kind"
        + ("; dots: the last that is kept" if cut else ""),
        x_label="direction",
        legend_beside=True,
        dots={kind: drawn[kind][_place(means[kind], drawn[kind])] for kind in largest} if cut else {},
    )
    with replace_file(path) as file:
        image.save(file, "PNG")


def _place(rank: float, points: Sequence[tuple[float, float]]) -> int:
    return max(0, min(round(rank), len(points)) - 1)


def _mean_curve(spectra: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Over the directions that all layers of a kind have; zeros leave a gap."""
    shared = min(len(s) for s in spectra)
    mean = torch.stack([s[:shared].log10() for s in spectra]).mean(dim=0)
    return [(float(place + 1), float(value)) for place, value in enumerate(mean)]
