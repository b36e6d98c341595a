"""Several conditionings in one evaluation: each has its own state, and all are skipped or none."""

from __future__ import annotations

import torch

from musubi_core.sampling.magcache_batch import Asked, MagCacheBatch
from musubi_core.sampling.magcache_config import SkipRule

COND, UNCOND = Asked(1, "cond"), Asked(2, "uncond")
RATIOS = {"cond": (1.0, 0.99, 0.99, 0.99, 0.99), "uncond": (1.0, 0.99, 0.5, 0.99, 0.99)}


def run(k: int = 2) -> MagCacheBatch:
    return MagCacheBatch(
        RATIOS.__getitem__, SkipRule(threshold=0.2, k=k, retention=0.0), [True] + [False] * 4
    )


def tokens(value: float) -> torch.Tensor:
    return torch.full((1, 2, 3), value)


def test_residuals_come_back_in_the_order_that_is_asked_for():
    batch = run()
    batch.remember([UNCOND, COND], 0, torch.cat([tokens(2.0), tokens(1.0)]))
    found = batch.residual([COND, UNCOND], 1)
    assert found is not None and torch.equal(found, torch.cat([tokens(1.0), tokens(2.0)]))


def test_batched_or_apart_the_same_steps_of_each_are_skipped_where_the_ratios_agree():
    same = MagCacheBatch(lambda _: RATIOS["cond"], SkipRule(threshold=0.2, k=2, retention=0.0), [False] * 5)
    decided = {"together": [], "apart": []}
    for name, groups in (("together", [[UNCOND, COND]]), ("apart", [[UNCOND], [COND]])):
        for step in range(5):
            for group in groups:
                skipped = same.residual(group, step) is not None
                decided[name] += [(step, one.branch, skipped) for one in group]
                if not skipped:
                    same.remember(group, step, tokens(1.0).repeat(len(group), 1, 1))
        same.clear()
    assert decided["together"] == decided["apart"]
    assert {step for step, _, skipped in decided["apart"] if skipped} == {1, 2, 4}


def test_one_that_must_be_computed_makes_all_of_its_batch_computed_and_ends_their_rows():
    batch = run()
    both = [UNCOND, COND]
    batch.remember(both, 0, tokens(1.0).repeat(2, 1, 1))
    assert batch.residual(both, 1) is not None
    assert batch.residual(both, 2) is None  # 0.5 is too far for the negative prompt
    batch.remember(both, 2, tokens(1.0).repeat(2, 1, 1))
    assert batch.residual(both, 3) is not None and batch.residual(both, 4) is not None


def test_the_plan_is_what_happens():
    batch = run()
    for branch, asked in (("cond", COND), ("uncond", UNCOND)):
        happened = []
        for step in range(5):
            skipped = batch.residual([asked], step) is not None
            happened.append(skipped)
            if not skipped:
                batch.remember([asked], step, tokens(1.0))
        assert tuple(happened) == batch.plan(branch)
    assert batch.count.skipped == sum(batch.plan("cond")) + sum(batch.plan("uncond"))
    assert batch.count.evaluations == 10


def test_nothing_is_kept_after_the_run():
    batch = run()
    batch.remember([COND], 0, tokens(1.0))
    batch.clear()
    assert batch.residual([COND], 1) is None
