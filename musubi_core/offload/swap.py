"""Block swap of a whole network: one ring for each list of equal blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from musubi_core.offload.exchange import Exchange, update
from musubi_core.offload.groups import spread
from musubi_core.offload.ring import Ring
from musubi_core.offload.visits import Visits

Lists = Sequence[Sequence[nn.Module]]  # lists of equal blocks, in the order in which they run


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """The rings of one network, and the exchanges of those whose weights are trained.

    visits: of modules that come in only while they compute. Empty when nothing is swapped.
    """

    rings: tuple[Ring, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    visits: Visits | None = None

    @property
    def copied(self) -> int:
        """Blocks brought to the device so far."""
        return sum(ring.copied for ring in self.rings)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step()` with the device's help for swapped weights that are trained; see `exchange`."""
        update(optimizer, self.exchanges)

    def release(self) -> None:
        """End swapping: swapped weights stay in host memory. Calling it again does nothing."""
        if self.visits is not None:
            self.visits.release()
        for exchange in self.exchanges:
            exchange.release()
        for ring in self.rings:
            ring.release()

    def lines(self, *, pinned: bool) -> tuple[str, ...]:
        """What the user is told. pinned: whether that was asked for."""
        if self.visits is not None:
            size = f"{self.visits.host_bytes / 1e9:.2f} GB"
            kept = f"The layers that take in latents and captions wait in main memory ({size})."
            return (kept, *replace(self, visits=None).lines(pinned=pinned))
        if not self.rings:
            return ()
        blocks = sum(ring.blocks for ring in self.rings)
        host = sum(ring.host_bytes for ring in self.rings) / 1e9
        here = sum(ring.device_bytes for ring in self.rings) / 1e9
        told = f"{blocks} blocks wait in main memory ({host:.2f} GB) and share {here:.2f} GB of the device."
        if pinned and not all(ring.pinned for ring in self.rings):
            return (told, "The system gives no pinned memory of that size, so copies take longer.")
        return (told,)


def swap(
    lists: Lists, counts: Sequence[int], *, ring: int, device: torch.device, pinned: bool = False
) -> Swap:
    """Stream counts[i] evenly spaced blocks of lists[i] through `ring` device buffers each.

    The parameters of the other blocks must be on the device already.
    """
    rings: list[Ring] = []
    exchanges: list[Exchange] = []
    for blocks in filter(None, streamed(lists, counts)):
        if any(weight.requires_grad for block in blocks for weight in block.parameters()):
            exchanges.append(Exchange(blocks, slots=ring, device=device, pinned=pinned))
            rings.append(exchanges[-1].ring)
        else:
            rings.append(Ring(blocks, slots=ring, device=device, pinned=pinned))
    return Swap(rings=tuple(rings), exchanges=tuple(exchanges))


def streamed(lists: Lists, counts: Sequence[int]) -> list[list[nn.Module]]:
    """The blocks of each list that are swapped."""
    pairs = zip(lists, counts, strict=True)
    return [[blocks[place] for place in spread(len(blocks), count)] for blocks, count in pairs]


def placement(
    network: nn.Module,
    lists: Lists,
    counts: Sequence[int],
    device: torch.device,
    visitors: Sequence[nn.Module] = (),
) -> Callable[[str], torch.device]:
    """Where a loader shall put each tensor, by dotted name: what is swapped or visits begins in the host."""
    waiting = {id(block) for blocks in (*streamed(lists, counts), visitors) for block in blocks}
    prefixes = tuple(f"{name}." for name, module in network.named_modules() if id(module) in waiting)
    host = torch.device("cpu")
    return lambda name: host if name.startswith(prefixes) else device
