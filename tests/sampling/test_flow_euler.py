"""Oracle: diffusers' FlowMatchEulerDiscreteScheduler, given the unshifted grid so that it shifts once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musubi_core.sampling.flow_euler import euler_times, sample_euler, shift_time


@pytest.mark.parametrize(("steps", "shift"), [(4, 1.0), (20, 7.0), (50, 14.5)])
def test_a_whole_trajectory_equals_diffusers(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) / 3
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))

    def velocity(x, t):
        return torch.tanh(x @ weight) + t

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    expected = noise
    for timestep in scheduler.timesteps:
        expected = scheduler.step(velocity(expected, timestep.item() / 1000), timestep, expected).prev_sample

    seen = []
    found = sample_euler(velocity, noise, euler_times(steps, shift), on_step=lambda i, x: seen.append(i))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert seen == list(range(steps))


def test_the_true_velocity_leads_back_to_the_clean_latent():
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = sample_euler(lambda x, t: noise - clean, noise, euler_times(7, 3.0))
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)


def test_shift_keeps_the_ends_and_moves_the_middle():
    t = torch.tensor([0.0, 0.5, 1.0])
    assert shift_time(t, 7.0).tolist() == pytest.approx([0.0, 0.875, 1.0])


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        euler_times(0, 1.0)
