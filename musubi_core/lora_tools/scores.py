"""Scores of directions after a recipe, and which directions a recipe keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.lora_tools.layers import LayerShape
from musubi_core.lora_tools.norms import spectral_norm
from musubi_core.lora_tools.rank_rules import NOTHING
from musubi_core.lora_tools.recipe import Recipe
from musubi_core.lora_tools.records import ALPHA, Record
from musubi_core.lora_tools.spectral import Spectrum

_LEAST = 1e-30  # a base weight of zeros has a logarithm too


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the first pass keeps of a layer.

    s: (r,) falling, of the change with its scale. references: () or (r,), by the name of the score.
    """

    record: Record
    shape: LayerShape
    s: Tensor
    references: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """kept: indices of the directions of each layer. threshold: the lowest score kept. best: the highest."""

    kept: tuple[Tensor, ...]
    threshold: float
    best: float


def references(
    names: Collection[str], spectrum: Spectrum, shape: LayerShape, weight: Tensor | None
) -> dict[str, Tensor]:
    """What scores compare with, of one layer. weight: the base's (o, i * k), if it was read."""
    found = {
        "spn_lora": spectrum.s[0],
        "fro_lora": spectrum.s.norm(),
        "params": torch.tensor(float(shape.outputs + shape.columns), dtype=torch.float64),
    }
    if weight is not None:
        if "spn_ckpt" in names:
            found["spn_ckpt"] = torch.tensor(spectral_norm(weight), dtype=torch.float64)
        if "fro_ckpt" in names:
            found["fro_ckpt"] = weight.double().norm()
        if "subspace" in names:
            images = weight @ spectrum.vh.T.to(weight)
            found["subspace"] = (spectrum.u * images.double()).sum(dim=0).abs()
    return {name: found[name] for name in names}


def scores(recipe: Recipe, layer: Measured) -> Tensor:
    """(r,) scores of a layer's directions, -inf for a layer that has learned nothing."""
    if layer.s[0] < NOTHING:
        return torch.full_like(layer.s, -math.inf)
    found = layer.s.clamp(min=_LEAST).log10() + math.log10(recipe.rescale)
    for name, weight in recipe.weights.items():
        found = found - weight * layer.references[name].clamp(min=_LEAST).log10()
    return found


def choose(recipe: Recipe, layers: Sequence[Measured], budget: tuple[float, int] | None) -> Chosen:
    """By threshold, or the best directions as long as they fit.

    budget: (bytes for factors and alphas, bytes per number), where the recipe has a size.
    """
    rated = [scores(recipe, layer) for layer in layers]
    best = max(float(one.max()) for one in rated)
    if budget is None:
        threshold = recipe.thr if recipe.thr is not None else -math.inf
    else:
        most, width = budget
        costs = [
            Cost(
                direction=(layer.shape.outputs + layer.shape.columns) * width,
                opening=4 if ALPHA in layer.record.keys else 0,
            )
            for layer in layers
        ]
        threshold = threshold_for(rated, costs, most)
    kept = tuple(torch.nonzero((one >= threshold) & one.isfinite()).flatten() for one in rated)
    return Chosen(kept=kept, threshold=threshold, best=best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes of one direction of a layer, and of what the first one brings along."""

    direction: int
    opening: int


def threshold_for(rated: Sequence[Tensor], costs: Sequence[Cost], most: float) -> float:
    """The lowest score such that all directions from it upwards fit into `most` bytes; inf when none does.

    rated: (r,) scores of each layer. Directions of equal score stay or go together.
    """
    opened = [False] * len(costs)
    order = sorted(
        ((float(score), place) for place, one in enumerate(rated) for score in one if score > -math.inf),
        reverse=True,
    )
    threshold, used = math.inf, 0
    for at, (score, place) in enumerate(order):
        used += costs[place].direction + (0 if opened[place] else costs[place].opening)
        opened[place] = True
        if used > most:
            break
        if at + 1 == len(order) or order[at + 1][0] < score:
            threshold = score
    return threshold
