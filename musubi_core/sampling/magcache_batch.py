"""MagCache where one evaluation of a network may answer several conditionings at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musubi_core.sampling.magcache import MagCacheState, SkipCount, skip_plan
from musubi_core.sampling.magcache_config import SkipRule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Asked:
    """A conditioning of an evaluation. key: the same in every step. branch: of guidance, which has ratios."""

    key: Hashable
    branch: str


class MagCacheBatch:
    """One sampling run. Each conditioning has a state of its own, and a batch is skipped as a whole or not.

    Several threads may ask at the same time, each for other conditionings.
    """

    def __init__(
        self, ratios: Callable[[str], Sequence[float]], rule: SkipRule, computed: Sequence[bool]
    ) -> None:
        """ratios: of a branch, one per step of this run. computed: see `magcache.always_computed`."""
        self._ratios, self._rule, self._computed = ratios, rule, tuple(computed)
        self._states: dict[Hashable, MagCacheState] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> SkipCount:
        """What was skipped so far, each conditioning counted by itself."""
        return sum((state.count for state in self._states.values()), SkipCount())

    def plan(self, branch: str) -> tuple[bool, ...]:
        """Which steps of a branch will be skipped when a sampler asks once for each."""
        return skip_plan(self._ratios(branch), self._rule, self._computed)

    def residual(self, asked: Sequence[Asked], step: int) -> Tensor | None:
        """What to add instead of running the blocks, (B, L, D) in the order of `asked`, all of one size.

        None when one of the conditionings must be computed: then all are.
        """
        import torch

        states = [self._state(one) for one in asked]
        if not all(state.decide(step) for state in states):
            return None
        return torch.cat([state.reuse(step) for state in states])

    def remember(self, asked: Sequence[Asked], step: int, residual: Tensor) -> None:
        """The blocks were run at this step and added `residual`."""
        parts = residual.chunk(len(asked))
        for one, part in zip(asked, parts, strict=True):
            self._state(one).remember(step, part)

    def clear(self) -> None:
        """Let go of what the blocks added: one tensor per conditioning."""
        for state in self._states.values():
            state.clear()

    def _state(self, asked: Asked) -> MagCacheState:
        with self._lock:
            if asked.key not in self._states:
                ratios = self._ratios(asked.branch)
                self._states[asked.key] = MagCacheState(ratios, self._rule, self._computed)
            return self._states[asked.key]
