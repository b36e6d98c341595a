"""How many blocks of a network may be swapped, and which. Plain numbers; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musubi_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def one_list(blocks: int) -> tuple[int, ...]:
    """All blocks of the network form one list."""
    return (blocks,)


def double_and_single(blocks: int) -> tuple[int, ...]:
    """musubi-tuner's split of n for networks whose double blocks weigh about two single ones."""
    double = blocks // 2
    return double, 2 * (blocks - double) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRule:
    """What `--blocks_to_swap n` means for an architecture.

    lists: the blocks of equal size, list by list, in the order in which they run; None: all blocks are one
    list. share: n -> how many of each list wait in host memory. stay: blocks of each list that never do.
    visitors: modules outside the blocks, by name, that --img_in_txt_in_offloading keeps in host memory.
    """

    lists: Callable[[nn.Module], tuple[list[nn.Module], ...]] | None = None
    share: Callable[[int], tuple[int, ...]] = one_list
    stay: int = 1
    visitors: tuple[str, ...] = ()

    def counts(self, blocks: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many of each list are swapped. Raises ConfigError naming the range that `blocks` may have."""
        most = self.most(sizes)
        if not 0 <= blocks <= most:
            have = " and ".join(str(size) for size in sizes)
            kinds = f"{len(sizes)} kinds of blocks, {have}," if len(sizes) > 1 else f"{have} blocks"
            raise ConfigError(
                f"--blocks_to_swap is {blocks}, but this model has {kinds} of which {self.stay} of a kind "
                f"must stay on the device: use 0 to {most}."
            )
        return self.share(blocks) if blocks else (0,) * len(sizes)

    def most(self, sizes: Sequence[int]) -> int:
        """The largest n whose shares leave `stay` blocks of each list on the device; 0 if there is none."""

        def fits(blocks: int) -> bool:
            shares = zip(self.share(blocks), sizes, strict=True)
            return all(share <= size - self.stay for share, size in shares)

        return max((blocks for blocks in range(1, sum(sizes) + 1) if fits(blocks)), default=0)


def spread(size: int, swapped: int) -> tuple[int, ...]:
    """Places of `swapped` blocks among `size`, evenly spaced: each copy has equally long to arrive."""
    return tuple((2 * number + 1) * size // (2 * swapped) for number in range(swapped))
