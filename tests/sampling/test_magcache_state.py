"""One branch of a run: what is kept, counted and repeated."""

from __future__ import annotations

import pytest
import torch

from musubi_core.sampling.magcache import MagCacheState, SkipCount
from musubi_core.sampling.magcache_config import SkipRule

RATIOS = (1.0, 1.0, 0.98, 0.98, 0.98, 0.98)
RULE = SkipRule(threshold=0.1, k=2, retention=0.0)
FIRST, SECOND = torch.full((1, 2, 3), 1.0), torch.full((1, 2, 3), 2.0)


def state_at_two() -> MagCacheState:
    """Two steps computed, so that the next two may be skipped."""
    state = MagCacheState(RATIOS, RULE, (True, True, False, False, False, False))
    state.remember(0, FIRST)
    state.remember(1, SECOND)
    return state


def test_the_newest_residual_is_used():
    assert state_at_two().reuse(2) is SECOND


def test_errors_of_a_row_are_summed():
    """0.02 for the first step, and for the second what is left of 0.98 * 0.98 to 1."""
    state = state_at_two()
    for step in (2, 3):
        state.reuse(step)
    assert not state.decide(4)
    state.remember(4, FIRST)
    state.reuse(5)
    assert state.count == SkipCount(3, 6, pytest.approx(0.0596 + 0.02), pytest.approx(0.0596))


def test_counts_of_branches_add_up():
    assert SkipCount(1, 5, 0.1, 0.1) + SkipCount(2, 5, 0.3, 0.2) == SkipCount(3, 10, 0.4, 0.2)


def test_a_step_asked_for_again_is_decided_as_the_first_time():
    """Samplers of higher order ask twice at a step; the row of skips must not grow twice."""
    state = state_at_two()
    for _ in range(3):
        assert state.decide(2)
        state.reuse(2)
    assert state.decide(3)
    assert state.count.error == pytest.approx(0.02)
    computed = state_at_two()
    computed.remember(2, FIRST)
    assert not computed.decide(2)


def test_asking_changes_nothing():
    state = state_at_two()
    assert [state.decide(2) for _ in range(9)] == [True] * 9
    assert state.count.evaluations == 2


def test_computing_a_step_that_could_be_skipped_ends_the_row():
    state = state_at_two()
    state.reuse(2)
    state.remember(3, FIRST)
    assert state.decide(4)
    assert state.reuse(4) is FIRST
    assert state.decide(5)


def test_without_a_residual_every_step_is_computed():
    state = MagCacheState(RATIOS, RULE)
    assert not state.decide(3)
    state = state_at_two()
    state.clear()
    assert not state.decide(2)


def test_a_forbidden_residual_is_not_given():
    with pytest.raises(ValueError, match="step 0 must be computed"):
        MagCacheState(RATIOS, RULE).reuse(0)


def test_a_step_beyond_the_run_is_an_error():
    with pytest.raises(IndexError):
        state_at_two().decide(6)
