"""How weights become 8-bit codes with scales, as plain values. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

FORMATS = ("e4m3", "e5m2")
GRANULARITIES = ("block", "channel", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The number format of the codes, and which weights share a scale.

    granularity: "block", `block` neighbours of a row; "channel", a row (all inputs of one output); "tensor",
    everything. Shapes of the scale of an (out, in) weight: (out, in / block, 1), (out, 1) and ().
    """

    format: str = "e4m3"
    granularity: str = "block"
    block: int = 64

    def fitting(self, shape: Sequence[int]) -> Scheme:
        """This scheme, or the next coarser one that a weight of this shape can have.

        Blocks must fill the rows; rows are something that only matrices have.
        """
        if len(shape) != 2:
            return replace(self, granularity="tensor")
        if self.granularity == "block" and shape[1] % self.block:
            return replace(self, granularity="channel")
        return self

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the scale of a weight that this scheme fits."""
        if self.granularity == "tensor":
            return ()
        groups = (shape[1] // self.block, 1) if self.granularity == "block" else (1,)
        return (shape[0], *groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationConfig:
    """What a loader shall keep in 8 bits: the weights of linear layers below `targets`, and how.

    targets: names of modules, e.g. "double_blocks"; every linear layer inside one is meant. keep_precise:
    parts of names that are left alone all the same. scheme: None for a plain cast to e4m3 without scales.
    upcast_fp8: accept a file that is fp8 already, at the price of a second rounding. fast: multiply in fp8.
    """

    targets: tuple[str, ...]
    keep_precise: tuple[str, ...] = ()
    scheme: Scheme | None = Scheme()
    upcast_fp8: bool = False
    fast: bool = False

    def covers(self, name: str) -> bool:
        """Whether the weight called `name`, dotted, with whatever prefix, is to be kept in 8 bits."""
        inside = not set(self.targets).isdisjoint(name.split("."))
        return inside and not any(part in name for part in self.keep_precise)
