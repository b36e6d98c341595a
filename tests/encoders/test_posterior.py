"""Posterior samples depend on the item's seed and on nothing else."""

from __future__ import annotations

import pytest
import torch

from musubi_core.encoders.posterior import draw


def test_a_sample_depends_on_neither_batch_nor_order():
    mean, std = torch.randn(3, 4, 2), torch.rand(3, 4, 2)
    batch = draw(mean, std, [7, 8, 9])
    backwards = draw(mean.flip(0), std.flip(0), [9, 8, 7]).flip(0)
    alone = torch.cat([draw(mean[i : i + 1], std[i : i + 1], [7 + i]) for i in range(3)])
    assert torch.equal(batch, backwards)
    assert torch.equal(batch, alone)


def test_samples_have_the_asked_mean_and_deviation():
    drawn = draw(torch.full((1, 100_000), 2.0), torch.full((1, 100_000), 0.5), [1])
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.01)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    draw(torch.zeros(1, 4), torch.ones(1, 4), [3])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_half_precision_posteriors_are_drawn_in_float32():
    assert draw(torch.zeros(1, 4).half(), torch.ones(1, 4).half(), [3]).dtype == torch.float32
