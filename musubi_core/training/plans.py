"""Which batches make which optimizer step: a pure function of the dataset, the seed and the step's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import overload

from musubi_core.data.order import BatchPlan, epoch_batches
from musubi_core.data.training_set import TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroPlan:
    """One batch of one process.

    epoch counts from 0. index, first: the places of the batch and of its first sample in the epoch.
    """

    epoch: int
    index: int
    first: int
    batch: BatchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One optimizer step, counted from 0. samples: of all processes; each weighs 1 / samples."""

    step: int
    epoch: int
    mine: tuple[MicroPlan, ...]
    samples: int
    ends_epoch: bool


class StepPlans(Sequence[StepPlan]):
    """The steps from `start` to `total`, made when they are looked at.

    total: ignored when `epochs` is given. together: batches per step over all processes and accumulation. The
    last step of an epoch may have fewer, and then some processes none. Batch b belongs to process b % count.
    """

    def __init__(
        self,
        training: TrainingSet,
        *,
        seed: int,
        together: int,
        total: int,
        epochs: int | None = None,
        index: int = 0,
        count: int = 1,
    ) -> None:
        self.together = together
        self.start = 0
        self._index, self._count = index, count

        @lru_cache(maxsize=2)  # the epoch in use, and the next one while reading ahead
        def epoch_plans(epoch: int) -> tuple[MicroPlan, ...]:
            batches = epoch_batches(training, seed, epoch)
            firsts = accumulate((len(batch.samples) for batch in batches), initial=0)
            return tuple(
                MicroPlan(epoch=epoch, index=at, first=first, batch=batch)
                for at, (batch, first) in enumerate(zip(batches, firsts, strict=False))
            )

        self._epoch_plans = epoch_plans
        self.batches_per_epoch = len(epoch_plans(0))
        self.steps_per_epoch = -(-self.batches_per_epoch // together)
        self.total = total if epochs is None else epochs * self.steps_per_epoch

    @property
    def kinds(self) -> int:
        """How many sizes of batches there are: buckets, and their short last batches."""
        batches = [plan.batch.samples for plan in self._epoch_plans(0)]
        return len({(len(samples), samples[0].item.shapes) for samples in batches})

    def at(self, step: int) -> StepPlan:
        """The plan of step `step`, counted from the beginning of the run."""
        epoch, place = divmod(step, self.steps_per_epoch)
        group = self._epoch_plans(epoch)[place * self.together : (place + 1) * self.together]
        return StepPlan(
            step=step,
            epoch=epoch,
            mine=group[self._index :: self._count],
            samples=sum(len(plan.batch.samples) for plan in group),
            ends_epoch=place == self.steps_per_epoch - 1,
        )

    def from_step(self, start: int) -> StepPlans:
        """The same run, from step `start` on."""
        self.start = start
        return self

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    @overload
    def __getitem__(self, index: int) -> StepPlan: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepPlan]: ...
    def __getitem__(self, index: int | slice) -> StepPlan | Sequence[StepPlan]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.at(self.start + index)
