"""The axis along which solvers of higher order go."""

from __future__ import annotations

import math


def log_ratio(t: float) -> float:
    """l = ln((1 - t) / t): -inf for pure noise, inf for none. t: 0..1."""
    if t <= 0:
        return math.inf
    return math.log((1 - t) / t) if t < 1 else -math.inf
