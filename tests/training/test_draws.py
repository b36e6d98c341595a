"""Randomness by name."""

from __future__ import annotations

import hashlib

import torch

from musubi_core.training.draws import epoch_quantiles, generator_for, sample_noise, seed_of


def test_a_seed_is_the_same_for_ever():
    """A golden number: a change here changes every run that is resumed."""
    digest = hashlib.sha256(b"str:noise\x1fint:1").digest()
    assert seed_of("noise", 1) == int.from_bytes(digest[:8], "big") >> 1
    assert seed_of("noise", 1) != seed_of("noise", "1")
    assert seed_of("a", "bc") != seed_of("ab", "c")


def test_noise_belongs_to_the_sample_not_to_its_place():
    both = sample_noise((2, 3, 4), ["a", "b"])
    assert torch.equal(both[1], sample_noise((1, 3, 4), ["b"])[0])
    assert not torch.equal(both[0], both[1])
    assert both.dtype == torch.float32


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sample_noise((2, 8), ["a", "b"])
    epoch_quantiles(10, 3, generator_for("x"))
    assert torch.equal(torch.rand(4), expected)
