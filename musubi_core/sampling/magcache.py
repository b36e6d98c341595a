"""MagCache's decision: at which steps a network may add again what its blocks added before.

After "MagCache: Fast Video Generation with Magnitude-Aware Cache" (arXiv 2506.09045). What the blocks add to
the tokens, the residual, hardly turns from step to step, and its length changes by a ratio that is known
beforehand. So the error of using an old residual is known beforehand too: it is how far the product of the
ratios since then is from 1. Nothing here knows networks; residuals are held, never looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from musubi_core.sampling.magcache_config import SkipRule

if TYPE_CHECKING:
    from torch import Tensor


def nearest(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """Ratios measured over another number of steps, for `steps` of them: the nearest on a common scale.

    Halves go to the even neighbour, as in the published tables' own scripts; one step gets the last ratio.
    """
    if steps == 1:
        return (ratios[-1],)
    return tuple(ratios[round(step * (len(ratios) - 1) / (steps - 1))] for step in range(steps))


def always_computed(
    serving: Sequence[Hashable], retention: float, cached: Sequence[Hashable] | None = None
) -> tuple[bool, ...]:
    """Which steps are computed whatever the ratios say.

    serving: for every step the network that answers it. Each starts anew, since it cannot use what another
    one's blocks added: the first part of its own steps is computed, `retention` of them and at least one.
    cached: the networks whose steps may be skipped; None means all.
    """
    fixed: list[bool] = []
    for network, group in groupby(serving):
        count = len(list(group))
        kept = count if cached is not None and network not in cached else max(1, int(count * retention))
        fixed += [position < kept for position in range(count)]
    return tuple(fixed)


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """Steps skipped one after the other since the last computed one.

    product: of their ratios, the modelled length of the residual compared with the one in use. error: the
    sum over the row of how far that product was from 1.
    """

    product: float = 1.0
    steps: int = 0
    error: float = 0.0

    def longer(self, ratio: float) -> SkippedRow:
        """The row with one more step."""
        product = self.product * ratio
        return SkippedRow(product, self.steps + 1, self.error + abs(1.0 - product))

    def allowed(self, rule: SkipRule) -> bool:
        return self.error < rule.threshold and self.steps <= rule.k


def skip_plan(ratios: Sequence[float], rule: SkipRule, computed: Sequence[bool]) -> tuple[bool, ...]:
    """Which steps of a run will be skipped. ratios and computed (see `always_computed`): one per step."""
    plan: list[bool] = []
    row = SkippedRow()
    for ratio, fixed in zip(ratios, computed, strict=True):
        row = SkippedRow() if fixed else row.longer(ratio)
        skip = not fixed and row.allowed(rule)
        plan.append(skip)
        row = row if skip else SkippedRow()
    return tuple(plan)


@dataclass(frozen=True, slots=True)
class SkipCount:
    """What a run, or several branches of it, skipped.

    error: the modelled errors of all rows of skipped steps, summed. worst: that of the worst row.
    """

    skipped: int = 0
    evaluations: int = 0
    error: float = 0.0
    worst: float = 0.0

    def __add__(self, other: SkipCount) -> SkipCount:
        return SkipCount(
            self.skipped + other.skipped,
            self.evaluations + other.evaluations,
            self.error + other.error,
            max(self.worst, other.worst),
        )


class MagCacheState:
    """One branch of guidance in one run: what its blocks added last, and how long that may still be used.

    Ask `decide` first, then tell what was done: `reuse` or `remember`. A caller may compute although it
    could skip, e.g. because another branch in the same batch has to; the row of skips then ends. A step that
    is asked for again, as samplers of higher order do, is decided as the first time.
    """

    def __init__(self, ratios: Sequence[float], rule: SkipRule, computed: Sequence[bool] = ()) -> None:
        """ratios: one per step. computed: see `always_computed`; by default as for a single network."""
        self._ratios = tuple(ratios)
        self._rule = rule
        self._computed = tuple(computed) or always_computed([0] * len(self._ratios), rule.retention)
        self._row = SkippedRow()
        self._last: tuple[int, bool] | None = None  # the last step and whether it was skipped
        self._residual: Tensor | None = None
        self._count = SkipCount()

    @property
    def count(self) -> SkipCount:
        """What was skipped so far."""
        return self._count

    def decide(self, step: int) -> bool:
        """Whether the blocks may be skipped at this step. Raises IndexError beyond the last one."""
        if self._last is not None and step == self._last[0]:
            return self._last[1]
        if self._computed[step] or self._residual is None:
            return False
        return self._row.longer(self._ratios[step]).allowed(self._rule)

    def reuse(self, step: int) -> Tensor:
        """The residual to add instead of running the blocks. Raises ValueError where `decide` forbids it."""
        if self._residual is None or not self.decide(step):
            raise ValueError(f"step {step} must be computed")
        if self._last is None or step != self._last[0]:
            before, self._row = self._row, self._row.longer(self._ratios[step])
            self._add(skipped=1, error=self._row.error - before.error)
        else:
            self._add(skipped=1, error=0.0)
        self._last = (step, True)
        return self._residual

    def remember(self, step: int, residual: Tensor) -> None:
        """The blocks were run at this step and added `residual`."""
        self._residual = residual
        self._row = SkippedRow()
        self._last = (step, False)
        self._add(skipped=0, error=0.0)

    def clear(self) -> None:
        """Let go of the residual; the next step is computed."""
        self._residual, self._last, self._row = None, None, SkippedRow()

    def _add(self, *, skipped: int, error: float) -> None:
        worst = self._row.error if skipped else 0.0
        self._count += SkipCount(skipped, 1, error, worst)
