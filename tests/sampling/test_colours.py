"""Latents at a glance."""

from __future__ import annotations

import torch

from musubi_core.sampling.colours import glance, grey_glance


def test_factors_and_bias_make_colours_from_minus_one_to_one():
    clean = torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 3, 4)
    found = glance(clean, [(0.5, -0.5, 0.0), (0.25, 0.0, 9.0)], (0.0, 0.5, 0.0))
    assert found.shape == (1, 3, 4, 3)
    assert found.dtype == torch.uint8
    assert found[0, 0, 0].tolist() == [255, 128, 255]  # 1.0, 0.0 and far beyond 1


def test_without_factors_shapes_are_shown_in_grey():
    """One half of the picture differs from the other in some channels: so do the tones."""
    clean = torch.randn((8, 2, 6, 6), generator=torch.Generator().manual_seed(0)) / 10
    clean[:4, :, :, 3:] += 3
    found = grey_glance(clean)
    assert found.shape == (2, 6, 6, 3)
    assert torch.equal(found[..., 0], found[..., 2])
    left, right = found[..., :3, 0].float(), found[..., 3:, 0].float()
    assert (left.mean() - right.mean()).abs() > 100
    assert left.std() < 15
    assert grey_glance(torch.zeros(4, 3, 3)).unique().tolist() == [128]
