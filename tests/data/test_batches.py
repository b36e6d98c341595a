"""Batches hold what the cache files hold, and what cannot be trained on is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cache_fixtures import HV, dataset, foreign_item, foreign_latent
from safetensors.torch import load_file, save_file

from musubi_core.data.batches import load_batch
from musubi_core.data.order import epoch_batches
from musubi_core.data.training_set import open_training_set
from musubi_core.errors import BadFileError


@pytest.fixture
def plans(tmp_path):
    config = dataset(tmp_path, batch_size=2)
    for number in range(7):
        foreign_item(config.cache_folder, f"i{number}")
    return epoch_batches(open_training_set((config,), HV, ("latents", "llm")), 0, 0)


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_batch_stacks_what_the_files_hold(plans):
    plan = next(plan for plan in plans if len(plan.samples) == 2)
    batch = load_batch(plan)
    assert batch["llm_mask"].shape == (2, 256)
    for row, sample in enumerate(plan.samples):
        stored = load_file(sample.item.latents)["latents_1x4x4_float16"]
        assert torch.equal(batch["latents"][row], stored)
        assert torch.equal(batch["clipL"][row], load_file(sample.item.text)["clipL_float16"])


def test_tensors_of_varying_length_stay_lists(tmp_path):
    config = dataset(tmp_path, batch_size=2)
    for stem, length in (("a", 3), ("b", 5)):
        foreign_latent(config.cache_folder / f"{stem}_0032x0032_hv.safetensors")
        path = config.cache_folder / f"{stem}_hv_te.safetensors"
        save_file(
            {"varlen_t5_float16": torch.zeros(length, 4).half()}, path, {"architecture": "hunyuan_video"}
        )
    (plan,) = epoch_batches(open_training_set((config,), HV, ("latents", "t5")), 0, 0)
    assert sorted(len(text) for text in load_batch(plan)["t5"]) == [3, 5]


def test_threads_load_the_same_batches(plans):
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(load_batch, plans * 5))
    assert all(same(one, load_batch(plan)) for one, plan in zip(together, plans * 5, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_cache_names_the_file(plans, bad):
    item = plans[1].samples[0].item
    foreign_latent(item.latents, fill=bad)
    with pytest.raises(BadFileError, match=rf"{item.latents.name} holds NaN or infinity in latents"):
        load_batch(plans[1])


def test_a_cache_that_changed_or_vanished_during_the_run_is_named(plans):
    item = plans[0].samples[0].item
    foreign_latent(item.latents, grid=(1, 8, 8))
    with pytest.raises(BadFileError, match=f"{item.latents.name}.*changed while"):
        load_batch(plans[0])
    item.latents.unlink()
    with pytest.raises(BadFileError, match=f"{item.latents.name}.*does not exist"):
        load_batch(plans[0])
