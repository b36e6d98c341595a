"""What a resize kept, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.files.replace import replace_file
from musubi_core.lora_tools.layers import kind_of
from musubi_core.lora_tools.scores import Measured
from musubi_core.pictures.plot import COLOURS, curves


def report(layers: Sequence[Measured], kept: Sequence[Tensor]) -> list[str]:
    """One line per kind of layer, and one for all: ranks before and after, and how much of the norm stays."""
    groups: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        groups.setdefault(kind_of(layer.record.base), []).append(place)
    lines = [_line(kind, [(layers[at], kept[at]) for at in places]) for kind, places in groups.items()]
    return [*lines, _line("all", list(zip(layers, kept, strict=True)))]


def _line(kind: str, pairs: Sequence[tuple[Measured, Tensor]]) -> str:
    before = [layer.record.rank for layer, _ in pairs]
    after = [len(kept) for _, kept in pairs]
    whole = sum(float(layer.s.square().sum()) for layer, _ in pairs)
    stays = sum(float(layer.s[kept].square().sum()) for layer, kept in pairs)
    lost = (max(whole - stays, 0.0) / whole) ** 0.5 if whole else 0.0
    text = (
        f"{kind}: {len(pairs)} layers, rank {_span(before)} to {_span(after)}, {lost:.2%} of the change lost"
    )
    gone = after.count(0)
    return f"{text}, {gone} layers left out." if gone else f"{text}."


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def spectrum_picture(layers: Sequence[Measured], path: Path) -> None:
    """Mean log10 of the singular values of each kind of layer, as a PNG; the kinds that change most."""
    groups: dict[str, list[Tensor]] = {}
    for layer in layers:
        groups.setdefault(kind_of(layer.record.base), []).append(layer.s)
    largest = sorted(groups, key=lambda kind: -max(float(s[0]) for s in groups[kind]))[: len(COLOURS)]
    image = curves(
        {kind: _mean_curve(groups[kind]) for kind in largest},
        title="log10 of the singular values, mean of the layers",
        x_label="direction",
    )
    with replace_file(path) as file:
        image.save(file, "PNG")


def _mean_curve(spectra: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Over the directions that all layers of a kind have; zeros leave a gap."""
    shared = min(len(s) for s in spectra)
    mean = torch.stack([s[:shared].log10() for s in spectra]).mean(dim=0)
    return [(float(place + 1), float(value)) for place, value in enumerate(mean)]
