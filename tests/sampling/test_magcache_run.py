"""What walks tokens through the blocks, or past them, with numbers worked by hand."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor

from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_run import MagCacheRun

RULE = SkipRule(threshold=0.5, k=1, retention=0.0)
COMPUTED = (True, False, False, False)


def run() -> MagCacheRun:
    return MagCacheRun(lambda branch: (1.0, 1.0, 1.0, 1.0), RULE, COMPUTED)


def tripled(tokens: Tensor) -> Tensor:
    return 3 * tokens


def unreachable(tokens: Tensor) -> Tensor:
    raise AssertionError("these blocks were to be skipped")


def test_a_skipped_step_adds_what_was_added_to_other_tokens_before():
    """Blocks made 3 of 1, so they added 2; past the blocks, 10 becomes 12."""
    cache = run()
    assert cache.through("cond", 0)(tripled, torch.ones(1, 2, 3)).unique().tolist() == [3.0]
    assert cache.through("cond", 1)(unreachable, torch.full((1, 2, 3), 10.0)).unique().tolist() == [12.0]
    assert cache.through("cond", 2)(tripled, torch.full((1, 2, 3), 5.0)).unique().tolist() == [15.0]
    assert cache.through("cond", 3)(unreachable, torch.zeros(1, 2, 3)).unique().tolist() == [10.0]
    assert (cache.count.skipped, cache.count.evaluations) == (2, 4)


def test_branches_add_what_was_added_to_their_own_tokens():
    cache = run()
    cache.through("cond", 0)(tripled, torch.ones(1, 1, 1))
    cache.through("uncond", 0)(tripled, torch.full((1, 1, 1), 4.0))
    assert cache.through("uncond", 1)(unreachable, torch.zeros(1, 1, 1)).item() == 8.0
    assert cache.through("cond", 1)(unreachable, torch.zeros(1, 1, 1)).item() == 2.0


def test_what_the_blocks_added_is_let_go_of():
    cache = run()

    class Watched(torch.Tensor):
        pass

    def watched(tokens: Tensor) -> Tensor:
        return tripled(tokens).as_subclass(Watched)

    cache.through("cond", 0)(watched, torch.ones(1, 2, 3))
    found = [one for one in gc.get_objects() if type(one) is Watched]
    kept = [weakref.ref(one) for one in found]
    assert kept, "the residual is held between steps"
    del found
    cache.clear()
    gc.collect()
    assert all(one() is None for one in kept)
