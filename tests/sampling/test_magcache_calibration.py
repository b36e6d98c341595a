"""Measured ratios, against numbers worked by hand and plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from musubi_core.errors import ConfigError
from musubi_core.sampling.magcache_calibration import BranchMeasures, Change, change, doubts, measured_table
from musubi_core.sampling.magcache_run import CalibrationRun


def test_a_longer_residual_of_the_same_direction():
    before = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    assert change(1.5 * before, before) == Change(1.5, 0.0, pytest.approx(0.0, abs=1e-6))


def test_a_change_is_the_mean_over_tokens():
    """Lengths 5 to 10 and 2 to 1: quotients 2 and 0.5. The second token turns by a right angle."""
    before = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    now = torch.tensor([[[6.0, 8.0], [1.0, 0.0]]])
    found = change(now, before)
    assert found.ratio == pytest.approx(1.25)
    assert found.spread == pytest.approx(math.sqrt(2 * 0.75**2))
    assert found.turn == pytest.approx(0.5)


def test_a_change_is_measured_in_float32():
    """In bfloat16 the ratio would be a multiple of 1/128."""
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.randn(2, 50, 8, generator=generator).bfloat16() for _ in range(2))
    lengths = [
        math.sqrt(sum(float(x) ** 2 for x in a)) / math.sqrt(sum(float(x) ** 2 for x in b))
        for a, b in zip(now.flatten(0, 1), before.flatten(0, 1), strict=True)
    ]
    assert change(now, before).ratio == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)


def test_branches_are_compared_with_themselves():
    run = CalibrationRun()
    tokens = torch.ones(1, 2, 4)
    for step, length in enumerate((1.0, 2.0, 3.0)):
        for branch, factor in (("cond", 1.0), ("uncond", 10.0)):
            added = length**factor
            after = run.through(branch, step)(lambda x, added=added: x + added, tokens)
            assert torch.equal(after, tokens + added)
    ratios = {name: [one.ratio for one in measured.changes] for name, measured in run.measures.items()}
    assert ratios == {
        "cond": pytest.approx([1.0, 2.0, 1.5], rel=1e-4),
        "uncond": pytest.approx([1.0, 2.0**10, 1.5**10], rel=1e-4),
    }


def test_a_step_asked_for_again_is_measured_once():
    measures = BranchMeasures()
    for step in (0, 0, 1, 1):
        measures.add(step, torch.full((1, 1, 2), 2.0**step))
    assert [one.ratio for one in measures.changes] == [1.0, 2.0]


def measured(*lengths: float) -> BranchMeasures:
    measures = BranchMeasures()
    for step, length in enumerate(lengths):
        measures.add(step, torch.full((1, 3, 2), length))
    return measures


def test_what_was_measured_becomes_a_table():
    table = measured_table("a", "b", {"cond": measured(1.0, 1.5, 3.0)}, {"latent": [1, 2]})
    assert (table.name, table.of("cond")) == ("a b, 3 steps", (1.0, 1.5, 2.0))
    assert table.details["latent"] == [1, 2]
    assert table.details["steadiness"]["cond"]["spread"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("lengths", [(1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0,)])
def test_a_run_that_broke_down_gives_no_table(lengths: tuple[float, ...]):
    with pytest.raises(ConfigError, match="measurement of cond"):
        measured_table("a", "b", {"cond": measured(*lengths)}, {})


def test_steady_residuals_leave_no_doubt():
    assert doubts({"cond": measured(1.0, 1.1, 1.2)}) == ""


def test_residuals_that_turn_are_doubted():
    generator = torch.Generator().manual_seed(0)
    measures = BranchMeasures()
    for step in range(5):
        measures.add(step, torch.randn(1, 50, 64, generator=generator))
    assert "of uncond" in doubts({"cond": measured(1.0, 1.0, 1.0), "uncond": measures})
