"""The flow-matching pair and the weights of the loss."""

from __future__ import annotations

import math

import pytest
import torch

from musubi_core.training.loss import flow_pair, loss_weights, sample_losses


def test_the_pair_runs_from_clean_to_noise():
    clean, noise = torch.zeros(3, 2, 1, 2, 2), torch.ones(3, 2, 1, 2, 2)
    noisy, velocity = flow_pair(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert [one.unique().tolist() for one in noisy] == [[0.0], [0.25], [1.0]]
    assert torch.equal(velocity, noise - clean)
    assert torch.allclose(noisy - torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1, 1) * velocity, clean)


def test_cosmap_has_the_published_values():
    weights = loss_weights("cosmap", torch.tensor([0.0, 0.5, 1.0]))
    assert weights.tolist() == pytest.approx([2 / math.pi, 4 / math.pi, 2 / math.pi])


def test_sigma_sqrt_uses_t_itself_and_stays_finite():
    assert loss_weights("sigma_sqrt", torch.tensor([0.5, 1.0, 0.0])).tolist() == pytest.approx(
        [4.0, 1.0, 1e6]
    )


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_other_schemes_do_not_weigh(scheme):
    assert loss_weights(scheme, torch.tensor([0.5])) is None


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 2, 2, 4, 4)])
def test_each_sample_keeps_its_own_weight(shape):
    """musubi-tuner shapes the weight [B,1,1,1,1], which mixes the samples of 4-D latents."""
    prediction = torch.zeros(shape)
    target = torch.arange(3.0).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    losses = sample_losses(prediction, target, torch.tensor([5.0, 2.0, 10.0]))
    assert losses.tolist() == [0.0, 2.0, 40.0]


def test_the_loss_is_computed_in_full_precision():
    prediction = torch.full((1, 8), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 8), 1.001)
    assert sample_losses(prediction, target).item() == pytest.approx(1e-6, rel=1e-3)
