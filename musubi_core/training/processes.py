"""This process among those that train together, its device and its precision. Built on accelerate."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from musubi_core.device.precision import pick_device, usual_precision

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """index of count processes; precision is "no", "fp16" or "bf16"."""

    device: torch.device
    index: int = 0
    count: int = 1
    precision: str = "no"

    @property
    def main(self) -> bool:
        """Whether this process writes files and tells the listener."""
        return self.index == 0

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return DTYPES[self.precision]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around the forward pass."""
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def add_up(self, tensor: Tensor) -> None:
        """Replace the tensor, in place and everywhere, by its sum over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether any process says so. Every process must ask."""
        if self.count == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item())

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def everyone(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, joined in their order."""
        if self.count == 1:
            return values
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, values)
        return [value for part in found for value in part]

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def join_processes(precision: str | None, timeout_minutes: int | None = None) -> Iterator[Processes]:
    """The processes that `accelerate launch` started, or this one alone.

    precision: None takes accelerate's, else bf16 (fp16 on cards without it) on a GPU, full on a CPU. What was
    set up here is taken down at the end, so a second run in the same process starts afresh.
    """
    from accelerate import PartialState

    before = bool(PartialState._shared_state)
    extra = {"timeout": timedelta(minutes=timeout_minutes)} if timeout_minutes else {}
    # Unless told, accelerate lets the processes of a machine without a GPU train side by side, unaware.
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or pick_device().type == "cpu"
    state = PartialState(cpu=cpu, **extra)
    try:
        yield Processes(
            device=state.device,
            index=state.process_index,
            count=state.num_processes,
            precision=precision
            or os.environ.get("ACCELERATE_MIXED_PRECISION")
            or usual_precision(state.device),
        )
        if state.num_processes > 1:
            dist.barrier()  # leave together: nobody is cut off from one that is still at work
    finally:
        if not before:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
            PartialState._reset_state()
            gc.collect()  # gloo aborts the process when its threads are first cleared away at exit


@contextlib.contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Give back torch's global random state as it was: dropout is seeded per batch, and others use it too."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def seed_device(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from: torch's generators of the CPU and of this device.

    torch.manual_seed would do the same for every kind of device there could be, in a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)
