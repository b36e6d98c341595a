"""Distributions of t on 0..1 as a pair of functions: cdf, and its inverse. All tensors are float64.

Drawing is quantile(uniform): a range, slices of equal probability and mixtures then need no rejection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musubi_core.errors import ConfigError

EDGE = 1e-7  # normal quantiles stop short of infinity
LEAST_MASS = 1e-6  # a range that holds less than this is empty for all practical purposes


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """cdf: t -> share of draws up to t. quantile: its inverse. Both keep the shape of their input."""

    quantile: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]


UNIFORM = Distribution(quantile=lambda q: q, cdf=lambda t: t.clamp(0, 1))


def logit_normal(location: float, scale: float) -> Distribution:
    """t = sigmoid(location + scale * z), z standard normal."""

    def quantile(q: Tensor) -> Tensor:
        return torch.sigmoid(location + scale * torch.special.ndtri(q.clamp(EDGE, 1 - EDGE)))

    def cdf(t: Tensor) -> Tensor:
        return torch.special.ndtr((torch.logit(t.clamp(0, 1)) - location) / scale)

    return Distribution(quantile=quantile, cdf=cdf)


def mode_density(strength: float) -> Distribution:
    """t = 1 - u - strength * (cos(pi u / 2)^2 - 1 + u), u uniform (SD3, arXiv 2403.03206). Falls with u."""

    def quantile(q: Tensor) -> Tensor:
        u = 1 - q
        return 1 - u - strength * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)

    return Distribution(quantile=quantile, cdf=lambda t: invert(quantile, t))


def shifted(base: Distribution, shift: float) -> Distribution:
    """t -> shift * t / (1 + (shift - 1) * t), which keeps 0 and 1."""
    return Distribution(
        quantile=lambda q: _shift(base.quantile(q), shift),
        cdf=lambda t: base.cdf(_shift(t.clamp(0, 1), 1 / shift)),
    )


def clamped(base: Distribution, low: float, high: float) -> Distribution:
    """Draws outside low..high become the nearer end."""

    def cdf(t: Tensor) -> Tensor:
        return torch.where(t < low, 0.0, torch.where(t >= high, 1.0, base.cdf(t)))

    return Distribution(quantile=lambda q: base.quantile(q).clamp(low, high), cdf=cdf)


def mixture(parts: Sequence[tuple[float, Distribution]]) -> Distribution:
    """Each part with its weight; the weights add up to 1."""

    def cdf(t: Tensor) -> Tensor:
        return torch.stack([weight * part.cdf(t) for weight, part in parts]).sum(0)

    return Distribution(quantile=lambda q: invert(cdf, q.clamp(EDGE, 1 - EDGE)), cdf=cdf)


def cut(base: Distribution, low: float, high: float, *, what: str) -> Distribution:
    """`base` given that low <= t <= high: the same shape inside, nothing outside.

    what: named in the ConfigError when `base` has (almost) nothing in the range.
    """
    below, above = base.cdf(torch.tensor([low, high], dtype=torch.float64)).tolist()
    mass = above - below
    if mass < LEAST_MASS:
        raise ConfigError(
            f"{what} draws nothing between min_timestep {low * 1000:g} and max_timestep {high * 1000:g}. "
            "Widen the range, choose another timestep_sampling, or leave out preserve_distribution_shape."
        )
    return Distribution(
        quantile=lambda q: base.quantile(below + q * mass).clamp(low, high),
        cdf=lambda t: ((base.cdf(t) - below) / mass).clamp(0, 1),
    )


def squeezed(base: Distribution, low: float, high: float) -> Distribution:
    """The whole of `base`, moved into low..high by a straight line."""
    return Distribution(
        quantile=lambda q: base.quantile(q) * (high - low) + low,
        cdf=lambda t: base.cdf((t - low) / (high - low)),
    )


def invert(rising: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """x in 0..1 with rising(x) = target, by halving 54 times: to the last bit of a float64 near 1."""
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(54):
        middle = (low + high) / 2
        under = rising(middle) < target
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


def _shift(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)
