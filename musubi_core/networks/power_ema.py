"""Weights of checkpoints in an average: constant beta, and the power function of EDM2 (arXiv 2312.02696).

A power-function average at time t weighs the moment tau by p(tau) = (g + 1) tau^g / t^(g + 1). Users know its
relative width sigma_rel instead of the exponent g. All functions are float64 and pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from musubi_core.errors import ConfigError

SIGMA_KEY = "musubi_core.ema_sigma_rel"  # in the metadata of a running average: its width
WIDEST = 1 / math.sqrt(12)  # the uniform average: g = 0
MOST_COEFFICIENTS = 100.0  # sum of |x|: beyond it, rounding of the stored files is multiplied too far


def exponent_of(sigma_rel: float) -> float:
    """The exponent g >= 0 of a relative width: root of g^3 + 7g^2 + (16 - s)g + (12 - s), s = width^-2.

    Raises ConfigError outside 0 < sigma_rel <= 1 / sqrt(12) = 0.2887, where no average of this kind exists.
    """
    if not 0 < sigma_rel <= WIDEST + 1e-12:
        raise ConfigError(
            f"sigma_rel is {sigma_rel:g}; expected more than 0 and at most {WIDEST:.4f}, the width of a "
            "plain average of everything. Usual values are 0.05 to 0.25."
        )
    s = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    g = max(float(root.real) for root in roots if abs(root.imag) < 1e-6)
    for _ in range(3):  # Newton: np.roots alone is good to 1e-13
        value = ((g + 7) * g + 16 - s) * g + 12 - s
        g -= value / ((3 * g + 14) * g + 16 - s)
    return max(g, 0.0)


def width_of(exponent: float) -> float:
    """sigma_rel of an exponent g > -1."""
    return math.sqrt(exponent + 1) / ((exponent + 2) * math.sqrt(exponent + 3))


def constant_betas(count: int, beta: float, beta2: float | None = None) -> list[float]:
    """musubi-tuner's decay at each of the count - 1 merges: beta, or beta to beta2 in a straight line."""
    merges = count - 1
    if beta2 is None or merges < 2:
        return [beta] * merges
    return [beta + (beta2 - beta) * index / (merges - 1) for index in range(merges)]


def counted_betas(count: int, exponent: float) -> list[float]:
    """musubi-tuner's decay for sigma_rel: files count 1, 2, 3, ... after the first, which gets no weight."""
    return [(1 - 1 / index) ** (exponent + 1) for index in range(1, count)]


def weights_of_betas(betas: Sequence[float]) -> list[float]:
    """Weight of each file, oldest first, after W = beta * W + (1 - beta) * next at every merge. Sum 1."""
    weights = [1.0]
    for beta in betas:
        weights = [weight * beta for weight in weights] + [1 - beta]
    return weights


def weights_at_steps(steps: Sequence[float], exponent: float) -> list[float]:
    """Weights of plain checkpoints saved at increasing steps: each stands for the time since the one before.

    Closed form of the recursion with the true times: (t_i^(g+1) - t_(i-1)^(g+1)) / t_n^(g+1), t_(-1) = 0.
    """
    edges = [0.0, *steps]
    power = exponent + 1
    return [
        (later / steps[-1]) ** power - (earlier / steps[-1]) ** power for earlier, later in pairwise(edges)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A power-function average: exponent g, taken at time t (a step count)."""

    exponent: float
    time: float


def overlap(a: Profile, b: Profile) -> float:
    """Inner product of two profiles over time."""
    ratio = a.time / b.time
    power = b.exponent if a.time < b.time else -a.exponent
    top = (a.exponent + 1) * (b.exponent + 1) * ratio**power
    return top / ((a.exponent + b.exponent + 1) * max(a.time, b.time))


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """A wanted average as a combination of stored ones."""

    weights: tuple[float, ...]  # sum 1
    error: float  # relative L2 distance between the profile reached and the wanted one
    amplification: float  # sum of |weight|: rounding of the stored files grows by this factor


def synthesize(stored: Sequence[Profile], wanted: Profile) -> Synthesis:
    """Least squares over the stored averages (EDM2, section 3.2 and appendix C).

    Raises ConfigError when the wanted time is later than all stored ones, or when the combination would
    magnify rounding more than a hundredfold.
    """
    if wanted.time > max(one.time for one in stored):
        raise ConfigError(
            f"An average at step {wanted.time:g} was asked for, but the last stored one is from step "
            f"{max(one.time for one in stored):g}. Ask for that step or an earlier one."
        )
    gram = np.array([[overlap(a, b) for b in stored] for a in stored])
    target = np.array([overlap(one, wanted) for one in stored])
    solution = np.linalg.lstsq(gram, target, rcond=None)[0]
    norm = overlap(wanted, wanted)
    distance = max(norm - 2 * solution @ target + solution @ gram @ solution, 0.0)
    weights = solution / solution.sum()
    amplification = float(np.abs(weights).sum())
    if not math.isfinite(amplification) or amplification > MOST_COEFFICIENTS:
        raise ConfigError(
            "This average cannot be made from the stored ones: their weights would sum to "
            f"{amplification:.3g} in size. Ask for a sigma_rel nearer to the stored ones, or store more."
        )
    return Synthesis(
        weights=tuple(float(weight) for weight in weights),
        error=math.sqrt(distance / norm),
        amplification=amplification,
    )
