"""One question to a network while a picture is drawn, for those who want to answer it in their own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from musubi_core.sampling.through import Through, straight

COND, UNCOND = "cond", "uncond"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The network is asked for its velocity at x. step: from 0. t: 0..1 as the network is told it, 1: noise.

    branch: COND for the prompt, UNCOND for the negative prompt. sides: for every step of the run, which of
    several networks answers, 0 for the one of lowest noise. conditioning: what `predict` is given.
    """

    branch: str
    step: int
    sides: tuple[int, ...]
    t: float
    network: nn.Module
    x: Tensor
    conditioning: Mapping[str, Any]

    @property
    def steps(self) -> int:
        return len(self.sides)

    @property
    def side(self) -> int:
        return self.sides[self.step]


# Asks the network, told how its tokens get through the blocks. Only specs with `ratios_for` can be told
# another way than `straight`; the conditioning then holds it as "through".
Ask: TypeAlias = Callable[[Through], Tensor]
# Answers by asking the network, or otherwise. Each branch is asked by itself then.
VelocityWrapper: TypeAlias = Callable[[Evaluation, Ask], Tensor]


def asked(evaluation: Evaluation, ask: Ask) -> Tensor:
    """The wrapper of those who always want the network's own answer."""
    return ask(straight)
