"""One question to a network while a picture is drawn, for those who want to answer it themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

COND, UNCOND = "cond", "uncond"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The network is asked for its velocity. step: from 0. t: 0..1 as the network is told it, 1 is noise.

    branch: COND for the prompt, UNCOND for the negative prompt. side: which of several networks it is, lowest
    noise first.
    """

    branch: str
    step: int
    steps: int
    t: float
    side: int
    network: nn.Module


# Asks the network by calling the second argument, or answers without. Each branch is asked by itself then.
VelocityWrapper: TypeAlias = Callable[[Evaluation, Callable[[], Tensor]], Tensor]


def asked(evaluation: Evaluation, ask: Callable[[], Tensor]) -> Tensor:
    """The wrapper of those who always want the network's own answer."""
    return ask()
