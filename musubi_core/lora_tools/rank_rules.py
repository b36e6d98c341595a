"""How many singular values of a layer are kept, by sd-scripts' rules (reference lora-and-fp8 5.3).

s: singular values, falling, (k,). size: the smaller side of the layer's matrix, which is how many singular
values sd-scripts sees; those beyond k are zero. All but `fixed` keep one value more than their rule asks for.
"""

from __future__ import annotations

from torch import Tensor

NOTHING = 1e-6  # a layer whose largest singular value is not above this has learned nothing

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")


def kept_count(s: Tensor, size: int, method: str, param: float, most: int | None) -> int:
    """How many values a rule keeps, at most `most` and never more than there are."""
    limit = min(len(s), most or len(s))
    if s[0] <= NOTHING:
        return 1
    if method == "sv_ratio":
        wanted = int((s > s[0] / param).sum())
    elif method == "sv_fro":
        wanted = _first_reaching(s.square(), param**2) + 1
    else:
        wanted = _first_reaching(s, param) + 1
    wanted = max(1, min(wanted, size - 1)) + 1
    return min(wanted, limit)


def count_for_energy(s: Tensor, whole: float, share: float) -> int:
    """The fewest values whose norm is `share` of `whole`, the norm of the layer's change; at least one."""
    return min(_first_reaching(s.square() / max(whole, 1e-300) ** 2, share**2, total=1.0) + 1, len(s))


def _first_reaching(parts: Tensor, share: float, total: float | None = None) -> int:
    """Index of the first running sum that is `share` of the total; the number of parts when none is."""
    sums = parts.cumsum(0)
    reached = sums >= share * (float(sums[-1]) if total is None else total)
    return int(reached.int().argmax()) if reached.any() else len(parts)
