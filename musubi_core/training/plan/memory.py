"""From what was counted to the memory that a run needs, on the device and in the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from musubi_core.training.opening import Opened
from musubi_core.training.plan.live_bytes import ACTIVATIONS
from musubi_core.training.plan.optimizer import state_bytes
from musubi_core.training.plan.rehearsal import ADAPTERS, BATCH, GRADIENTS, SCALES, WEIGHTS, Block, Rehearsal

STATES, BUFFERS, OVERHEAD = "optimizer states", "swap buffers", "overhead"
CONTEXT = 500_000_000  # what a process takes of a card before its first tensor; 400 to 600 MB on most
WASTE = 0.03  # of the rest, lost between pieces of memory of different sizes; an estimate
PROGRAM = {"cpu": 600_000_000, "other": 2_000_000_000}  # torch and its libraries in the host; an estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by what they are for. overhead: of the device, what the driver takes and what is lost."""

    device: Mapping[str, int]
    overhead: int
    host: Mapping[str, int]

    @property
    def tensors(self) -> int:
        """What torch will report as the most that it has allocated."""
        return sum(self.device.values())

    @property
    def needed(self) -> int:
        """What the card must have free."""
        return self.tensors + self.overhead


def memory_of(opened: Opened, counted: Rehearsal, *, items: int = 0) -> Memory:
    """items: bytes of cached items that are kept or wait in main memory."""
    device = dict.fromkeys((WEIGHTS, SCALES, ADAPTERS, GRADIENTS, STATES, BUFFERS, BATCH, ACTIVATIONS), 0)
    device |= counted.at_peak
    waiting = _share_out(opened, counted, device)
    _swap_out(opened, counted, device)
    # The update comes when activations are gone, and holds about one more copy of what it updates.
    device[ACTIVATIONS] = max(device[ACTIVATIONS], device[ADAPTERS])
    on_card = opened.here.device.type != "cpu"
    networks = sum(not expert.offload for expert in opened.experts)
    overhead = CONTEXT + int(WASTE * sum(device.values())) if on_card else 0
    streamed, slots = swap_bytes(opened, counted.swappable)
    staging = 0 if opened.config.swap.use_pinned_memory_for_block_swap else slots
    host = {
        "program and libraries": PROGRAM["other" if on_card else "cpu"],
        "swapped blocks": streamed + staging if on_card else 0,
        "input layers": networks * counted.visiting if on_card else 0,
        "activations": counted.on_host if on_card else 0,
        "waiting network": waiting if on_card else 0,
        "cached items": items,
        "one weight while loading": 4 * counted.largest_weight,  # as stored, and in float32 to be rounded
    }
    if not on_card:
        host["tensors"] = sum(device.values())
    return Memory(device=device, overhead=overhead, host=host)


def swap_bytes(opened: Opened, swappable: Sequence[Sequence[Block]]) -> tuple[int, int]:
    """(bytes of the blocks that wait in the host, bytes of the buffers they take turns in)."""
    streamed, slots = _moved(opened, swappable)
    return sum(block.total for block in streamed), slots


def _moved(opened: Opened, swappable: Sequence[Sequence[Block]]) -> tuple[list[Block], int]:
    options, rule = opened.config.swap, opened.spec.swap
    counts = rule.counts(options.blocks_to_swap, [len(blocks) for blocks in swappable])
    streamed: list[Block] = []
    slots = 0
    for blocks, count in zip(swappable, counts, strict=True):
        if count:
            largest = max(blocks, key=lambda block: block.total)
            streamed += [largest] * count
            slots += min(options.block_swap_ring_size, count) * largest.total
    return streamed, slots


def _swap_out(opened: Opened, counted: Rehearsal, device: dict[str, int]) -> None:
    """Take swapped blocks off the device, in place. On the CPU host and device are the same memory."""
    networks = sum(not expert.offload for expert in opened.experts)
    streamed, slots = _moved(opened, counted.swappable)
    device[BUFFERS] = networks * slots
    if opened.here.device.type != "cpu":
        device[WEIGHTS] -= networks * counted.visiting
        device[WEIGHTS] -= networks * sum(block.weights for block in streamed)
        device[SCALES] -= networks * sum(block.scales for block in streamed)


def _share_out(opened: Opened, counted: Rehearsal, device: dict[str, int]) -> int:
    """Add the other networks and LoRAs of the run, in place. Returns the bytes that wait in the host."""
    others = opened.experts[1:]
    one = device[WEIGHTS] + device[SCALES]
    waiting = sum(one for expert in others if expert.offload)
    staying = sum(not expert.offload for expert in others)
    if opened.here.device.type == "cpu":
        staying = len(others)
    device[WEIGHTS] *= 1 + staying
    device[SCALES] *= 1 + staying
    loras = len({expert.lora for expert in opened.experts})
    device[ADAPTERS] *= loras
    device[GRADIENTS] *= loras
    device[STATES] = loras * state_bytes(opened.config.optimizer, counted.shapes)
    return waiting


def numbers(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(torch.Size(shape).numel() for shape in shapes)
