"""The order of an epoch is a pure function of the set, the seed and the epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from musubi_core.data.dataset import DatasetConfig
from musubi_core.data.order import epoch_batches
from musubi_core.data.training_set import CachedDataset, CachedItem, TrainingSet


def cached(stem: str, grid=(1, 4, 4)) -> CachedItem:
    return CachedItem(
        stem=stem,
        source=f"{stem}.png",
        latents=Path(f"{stem}_0032x0032_hv.safetensors"),
        text=Path(f"{stem}_hv_te.safetensors"),
        shapes=(("latents", (16, *grid), "float16"),),
    )


def training_set(*datasets: CachedDataset) -> TrainingSet:
    return TrainingSet(datasets=datasets)


def of(items: list[CachedItem], **values) -> CachedDataset:
    return CachedDataset(config=DatasetConfig(image_directory=Path("x"), **values), items=tuple(items))


@pytest.fixture
def mixed() -> TrainingSet:
    wide = [cached(f"w{n}", (1, 4, 8)) for n in range(5)]
    tall = [cached(f"t{n}", (1, 8, 4)) for n in range(4)]
    return training_set(
        of(wide + tall, batch_size=2, num_repeats=3), of([cached(f"s{n}") for n in range(3)], batch_size=4)
    )


def names(plans):
    return [[sample.identity for sample in plan.samples] for plan in plans]


def test_each_item_is_seen_as_often_as_its_repeats_say(mixed):
    seen = Counter(sample.index for plan in epoch_batches(mixed, 1, 0) for sample in plan.samples)
    assert seen == Counter({**dict.fromkeys(range(9), 3), **dict.fromkeys(range(9, 12), 1)})
    assert mixed.samples_per_epoch == sum(seen.values()) == 30


def test_a_batch_never_mixes_datasets_or_shapes_and_the_short_last_one_is_kept(mixed):
    plans = epoch_batches(mixed, 1, 0)
    assert all(len({s.item.shapes for s in plan.samples}) == 1 for plan in plans)
    assert all({s.dataset for s in plan.samples} == {plan.dataset} for plan in plans)
    assert len(plans) == 8 + 6 + 1  # ceil(15 / 2), ceil(12 / 2), ceil(3 / 4)
    assert Counter(len(plan.samples) for plan in plans) == {2: 13, 1: 1, 3: 1}


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not(mixed):
    assert epoch_batches(mixed, 7, 3) == epoch_batches(mixed, 7, 3)
    assert names(epoch_batches(mixed, 7, 3)) != names(epoch_batches(mixed, 7, 4))
    assert names(epoch_batches(mixed, 7, 3)) != names(epoch_batches(mixed, 8, 3))


def test_the_order_is_the_same_on_every_machine():
    """Written down once: a change here breaks the resume of every run in the world."""
    letters = training_set(of([cached(letter) for letter in "abcdef"], batch_size=2))
    assert ["".join(s.item.stem for s in plan.samples) for plan in epoch_batches(letters, 42, 0)] == GOLDEN


GOLDEN = ["cb", "df", "ae"]


def test_the_order_does_not_depend_on_the_order_of_items():
    one = training_set(of([cached(letter) for letter in "abcdef"]))
    two = training_set(of([cached(letter) for letter in "fedcba"]))
    assert names(epoch_batches(one, 5, 1)) == names(epoch_batches(two, 5, 1))
