"""Which samples form which batch, in which order: a pure function of the set, a seed and the epoch.

Nothing is drawn from a random generator. Entries are sorted by a hash of seed, epoch and their own identity,
so the order is the same on every machine and Python version, and a position (epoch, index) is the whole
state: any batch of any epoch can be named again without replaying what came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from musubi_core.data.training_set import CachedDataset, CachedItem, Shapes, TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """One sample of a batch: `identity` names it for good, also after files are added to the dataset.

    dataset: number of its dataset. index: position in TrainingSet.items. repeat: 0 to num_repeats - 1.
    """

    dataset: int
    index: int
    repeat: int
    item: CachedItem

    @property
    def identity(self) -> str:
        """A stable text from which noise and timestep seeds may be derived."""
        return f"{self.dataset}/{self.item.latents.name}#{self.repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One batch to load: samples of one dataset with equal shapes."""

    dataset: int
    samples: tuple[PlannedSample, ...]


def epoch_batches(training: TrainingSet, seed: int, epoch: int) -> list[BatchPlan]:
    """All batches of an epoch, in order.

    Within a dataset, items with equal tensor shapes (a bucket) are shuffled with their repeats and cut into
    batches of its batch_size; the short last one is kept. Then the batches of all datasets are shuffled.
    """
    plans: list[BatchPlan] = []
    first = 0
    for number, dataset in enumerate(training.datasets):
        for bucket in _buckets(number, dataset, first):
            ordered = sorted(bucket, key=lambda one: _rank(seed, epoch, f"item:{one.identity}"))
            size = dataset.config.batch_size
            plans += [
                BatchPlan(dataset=number, samples=tuple(ordered[at : at + size]))
                for at in range(0, len(ordered), size)
            ]
        first += len(dataset.items)
    return sorted(plans, key=lambda plan: _rank(seed, epoch, f"batch:{plan.samples[0].identity}"))


def _buckets(number: int, dataset: CachedDataset, first: int) -> Iterable[list[PlannedSample]]:
    """The samples of a dataset, repeats included, grouped by the shapes of everything that is stacked."""
    buckets: dict[tuple[Shapes, tuple[str, ...]], list[PlannedSample]] = {}
    for at, item in enumerate(dataset.items):
        bucket = buckets.setdefault((item.shapes, item.lists), [])
        bucket += [
            PlannedSample(dataset=number, index=first + at, repeat=repeat, item=item)
            for repeat in range(dataset.config.num_repeats)
        ]
    return buckets.values()


def _rank(seed: int, epoch: int, identity: str) -> bytes:
    return hashlib.sha256(f"{seed}:{epoch}:{identity}".encode()).digest()
