"""Measuring magnitude ratios: how the residual of the blocks changes from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from musubi_core.sampling.magcache_config import checked_ratios
from musubi_core.sampling.magcache_tables import RatioTable

DIGITS = 5  # as the published tables have
UNSTEADY = 0.1  # a spread of the ratios, or a turn of the residuals, above which they are no good guide
SETTLED = 5  # one in so many steps: the first fifth is always unsteady, and is not skipped


@dataclass(frozen=True, slots=True)
class Change:
    """From one residual to the next, over all tokens of the batch.

    ratio: the mean quotient of their lengths. spread: its standard deviation. turn: 1 - the cosine of the
    angle between them, on average.
    """

    ratio: float = 1.0
    spread: float = 0.0
    turn: float = 0.0


def change(now: Tensor, before: Tensor) -> Change:
    """Compares residuals (B, L, D). In float32: in bfloat16 all ratios are multiples of 1/128."""
    now, before = now.float(), before.float()
    quotients = now.norm(dim=-1) / before.norm(dim=-1)
    turns = 1 - F.cosine_similarity(now, before, dim=-1, eps=1e-8)
    spread = float(quotients.std()) if quotients.numel() > 1 else 0.0
    return Change(float(quotients.mean()), spread, float(turns.mean()))


class BranchMeasures:
    """The changes of one branch of guidance over a run. The first step has nothing before it: 1, 0, 0."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._before: Tensor | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(self._changes)

    def add(self, step: int, residual: Tensor) -> None:
        """The blocks added `residual` at `step`. A step that is asked for again is measured once."""
        if step < len(self._changes):
            return
        self._changes.append(Change() if self._before is None else change(residual, self._before))
        self._before = residual

    def clear(self) -> None:
        self._before = None


def measured_table(
    architecture: str, variant: str, measures: Mapping[str, BranchMeasures], details: Mapping[str, Any]
) -> RatioTable:
    """What a calibration run found. details: how it was made, JSON values, kept beside the ratios.

    Raises ConfigError when a ratio is no positive number, as after a run that broke down.
    """
    steadiness = {
        branch: {
            "spread": [round(one.spread, DIGITS) for one in measured.changes],
            "turn": [round(one.turn, DIGITS) for one in measured.changes],
        }
        for branch, measured in measures.items()
    }
    return RatioTable(
        architecture=architecture,
        variant=variant,
        ratios={
            branch: checked_ratios(
                [round(one.ratio, DIGITS) for one in measured.changes],
                where=f"MagCache's measurement of {branch}",
            )
            for branch, measured in measures.items()
        },
        source="calibration run",
        details={**details, "steadiness": steadiness},
    )


def doubts(measures: Mapping[str, BranchMeasures]) -> str:
    """Why measured ratios should not be trusted, as a sentence; "" when they are steady.

    The idea of MagCache is that residuals keep their direction and shrink alike everywhere. Where they do
    not, no ratio predicts the error of using an old one.
    """
    for branch, measured in measures.items():
        changes = measured.changes
        late = changes[max(1, len(changes) // SETTLED) :]
        for what, values in (
            ("differ between tokens by", [one.spread for one in late]),
            ("turn by", [one.turn for one in late]),
        ):
            mean = sum(values) / len(values) if values else 0.0
            if not mean <= UNSTEADY:
                return (
                    f"The residuals of {branch} {what} {mean:.2f} on average after the first fifth of the "
                    f"steps, more than {UNSTEADY:g}: skipped steps may be visibly wrong. Use more steps, or "
                    "a low --magcache_threshold."
                )
    return ""
