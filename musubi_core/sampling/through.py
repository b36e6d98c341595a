"""How tokens get through the blocks of a network: through all of them, or as whoever samples prefers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Blocks: TypeAlias = Callable[[Tensor], Tensor]
# (what all blocks do to the tokens of the picture, those tokens) -> the tokens behind the last block.
# MagCache's skips the blocks and adds what they added before.
Through: TypeAlias = Callable[[Blocks, Tensor], Tensor]


def straight(blocks: Blocks, tokens: Tensor) -> Tensor:
    """The ordinary way: every block is run. tokens: (B, L, D)."""
    return blocks(tokens)
