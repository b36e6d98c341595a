"""MagCache in one sampling run: what walks the tokens through a network's blocks, or past them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from musubi_core.sampling.magcache import MagCacheState, SkipCount
from musubi_core.sampling.magcache_calibration import BranchMeasures
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.through import Blocks, Through


class MagCacheRun:
    """Skips the blocks where the ratios allow it, each branch of guidance by itself."""

    def __init__(
        self, ratios: Callable[[str], Sequence[float]], rule: SkipRule, computed: Sequence[bool]
    ) -> None:
        """ratios: of a branch, one per step of this run. computed: see `magcache.always_computed`."""
        self._ratios = ratios
        self._rule = rule
        self._computed = tuple(computed)
        self._states: dict[str, MagCacheState] = {}

    @property
    def count(self) -> SkipCount:
        """What all branches skipped so far."""
        return sum((state.count for state in self._states.values()), SkipCount())

    def through(self, branch: str, step: int) -> Through:
        """How the tokens of `branch` get through the blocks at `step`."""
        if branch not in self._states:
            self._states[branch] = MagCacheState(self._ratios(branch), self._rule, self._computed)
        state = self._states[branch]

        def walk(blocks: Blocks, tokens: Tensor) -> Tensor:
            if state.decide(step):
                return tokens + state.reuse(step)
            after = blocks(tokens)
            state.remember(step, after - tokens)
            return after

        return walk

    def clear(self) -> None:
        """Let go of what the blocks added: one tensor (B, L, D) per branch."""
        for state in self._states.values():
            state.clear()


class CalibrationRun:
    """Skips nothing, and measures how what the blocks add changes from step to step."""

    def __init__(self) -> None:
        self._measures: dict[str, BranchMeasures] = {}

    @property
    def measures(self) -> Mapping[str, BranchMeasures]:
        """Per branch, in the order in which they were first asked for."""
        return self._measures

    def through(self, branch: str, step: int) -> Through:
        """How the tokens of `branch` get through the blocks at `step`: through all of them."""
        measures = self._measures.setdefault(branch, BranchMeasures())

        def walk(blocks: Blocks, tokens: Tensor) -> Tensor:
            after = blocks(tokens)
            measures.add(step, after - tokens)
            return after

        return walk

    def clear(self) -> None:
        """Let go of the last residuals; the measurements stay."""
        for measures in self._measures.values():
            measures.clear()
