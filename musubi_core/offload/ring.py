"""Blocks whose weights wait in host memory and take turns in a ring of device buffers.

Weights travel one way, from the host to the device: frozen ones never change, so the host's copy is always
right. (What changes of trained ones is the business of `exchange`.) A block is brought in by a hook before
its forward. That is enough for training too: gradient checkpointing runs the forward of a block again for its
backward pass, and autograd finishes a block before it begins with the one before it (it always takes up what
was recorded last). So when the forward of a block begins, in either direction, everything that needs the
other streamed blocks has been queued on the device already, and their buffers may be filled anew as soon as
the device has got that far.

The parameters stay the same objects and only their memory changes, so hooks, adapters, optimizers and state
dicts do not notice. On the CPU the same code runs with buffers of its own as if they were a card's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from musubi_core.device.pinning import host_buffer
from musubi_core.device.streams import CopyStream
from musubi_core.offload.copies import Copies, copies_for

ALIGNMENT = 256  # bytes; what kernels expect of the start of a weight


class StreamedBlock:
    """The weights of one block in host memory, and where its parameters find them now.

    Weights of two and more axes travel, with the scales of 8-bit ones. The rest (biases, norms) is so small
    that it stays on the device.
    """

    def __init__(self, block: nn.Module, *, device: torch.device, pinned: bool, trained: bool) -> None:
        """trained: whether its weights may be."""
        self.bound: Tensor | None = None  # the device buffer that the parameters look at
        self._tensors: list[Tensor] = []
        self._offsets: list[int] = []
        end = 0
        for tensor in tensors_of(block):
            if tensor.requires_grad and not trained:
                raise ValueError("a ring does not copy back what a trained weight becomes; use an Exchange")
            if tensor.ndim < 2:
                tensor.data = tensor.data.to(device)
                continue
            self._tensors.append(tensor)
            self._offsets.append(end)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.master = host_buffer(end, pinned=pinned)
        for tensor, home in zip(self._tensors, self._views(self.master), strict=True):
            home.copy_(tensor.data)
            tensor.data = home

    def bind(self, buffer: Tensor | None) -> None:
        """Let the parameters look at a device buffer, or at the host's copy (None)."""
        if buffer is self.bound:
            return
        for tensor, view in zip(
            self._tensors, self._views(self.master if buffer is None else buffer), strict=True
        ):
            tensor.data = view
            # A graph that saved the weight itself would now read another block's: torch must refuse that.
            increment_version(tensor)
        self.bound = buffer

    def trained(self, buffer: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters that are trained, each with its place in a buffer of the size of `master`."""
        for tensor, view in zip(self._tensors, self._views(buffer), strict=True):
            if tensor.requires_grad:
                yield tensor, view

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for tensor, start in zip(self._tensors, self._offsets, strict=True):
            yield buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class Ring:
    """Streamed blocks in the order in which they run, and the device buffers (slots) that they share.

    Works for any order of calls; in the usual ones (forward, backward, forward again) the next blocks are on
    their way while one computes. `copied` counts the blocks brought in so far. frozen: no weight is trained.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        slots: int,
        device: torch.device,
        pinned: bool = False,
        frozen: bool = True,
    ) -> None:
        self.copied = 0
        self.streamed = [
            StreamedBlock(block, device=device, pinned=pinned, trained=not frozen) for block in blocks
        ]
        self._frozen = frozen
        masters = [block.master for block in self.streamed]
        size = max(len(master) for master in masters)
        slots = min(slots, len(blocks))
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(slots)]
        self._owners: list[int | None] = [None] * slots  # the block whose weights are in a slot, or coming
        self._tickets: list[Any] = [None] * slots
        self._stream = CopyStream(device)
        self._copies: Copies = copies_for(self._stream, masters, device=device, slots=slots)
        self._last, self._upwards = -1, True
        self._hooks = [
            block.register_forward_pre_hook(partial(self._before, rank), prepend=True)
            for rank, block in enumerate(blocks)
        ]

    @property
    def blocks(self) -> int:
        """How many blocks are streamed."""
        return len(self.streamed)

    @property
    def host_bytes(self) -> int:
        """Host memory of the weights."""
        return sum(len(block.master) for block in self.streamed)

    @property
    def device_bytes(self) -> int:
        """Device memory of the slots."""
        return sum(len(slot) for slot in self._slots)

    @property
    def pinned(self) -> bool:
        """Whether the card reads the weights directly."""
        return all(block.master.is_pinned() for block in self.streamed)

    def release(self) -> None:
        """End streaming: the weights stay in host memory as ordinary ones, the slots are freed."""
        for hook in self._hooks:
            hook.remove()
        self._copies.close()
        for block in self.streamed:
            block.bind(None)
        self.streamed.clear()
        self._slots.clear()
        self._owners.clear()

    def rest(self) -> None:
        """`let_go` of all blocks; what the device has of them counts no more, since the host's may change."""
        for rank in range(len(self.streamed)):
            self.let_go(rank)
        self._owners = [None] * len(self._slots)
        self._last = -1

    def let_go(self, rank: int) -> None:
        """Let the parameters of a block look at the host's copy, which may be written when this returns."""
        if rank in self._owners:
            self._copies.finish(self._tickets[self._owners.index(rank)])
        self.streamed[rank].bind(None)

    def bring(self, wanted: Sequence[int]) -> Tensor:
        """Bind the first block of `wanted`, and send for the others. Returns the buffer it is in."""
        with torch.no_grad():
            computed = self._stream.mark()
            slot = self._fetch(wanted[0], wanted, computed)
            self._copies.wait(self._tickets[slot])
            self.streamed[wanted[0]].bind(self._slots[slot])
            for near in wanted[1:]:
                self._fetch(near, wanted, computed)
        return self._slots[slot]

    def _before(self, rank: int, module: nn.Module, inputs: Any) -> None:
        self.bring(self._next(rank, training=torch.is_grad_enabled()))
        self._last = rank

    def _next(self, rank: int, *, training: bool) -> list[int]:
        """Block `rank` and those after it in the direction of travel, at most one per slot.

        In training nothing comes after the last one: the backward pass begins with what is there already.
        Otherwise another forward does, with the first one, if the weights are the same then.
        """
        end = len(self.streamed) - 1
        if rank != self._last:
            self._upwards = rank == 0 or rank > self._last
        count = len(self._slots)
        if not self._upwards:
            return [rank - step for step in range(count) if rank >= step]
        if training or not self._frozen:
            return [rank + step for step in range(count) if rank + step <= end]
        return [(rank + step) % (end + 1) for step in range(count)]

    def _fetch(self, rank: int, wanted: Sequence[int], computed: Any) -> int:
        """The slot that block `rank` is in, or will be in when its ticket has been waited for."""
        if rank in self._owners:
            return self._owners.index(rank)
        slot = next(slot for slot, owner in enumerate(self._owners) if owner not in wanted)
        owner, self._owners[slot] = self._owners[slot], None
        if owner is not None:
            self.streamed[owner].bind(None)
        master = self.streamed[rank].master
        self._tickets[slot] = self._copies.start(slot, self._slots[slot][: len(master)], master, computed)
        self._owners[slot] = rank
        self.copied += 1
        return slot


def tensors_of(block: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a block, each once."""
    yield from block.parameters()
    yield from block.buffers()
