"""Oracles: diffusers' schedulers, told our own grid of times, over whole trajectories."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from musubi_core.sampling.dpm import dpm_2m
from musubi_core.sampling.euler import euler
from musubi_core.sampling.samplers import SAMPLERS
from musubi_core.sampling.solving import flow_times, last, shift_time
from musubi_core.sampling.unipc import FLOW, NOISE_ONLY, unipc

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NOISE = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) / 3


def velocity(x: Tensor, t: float) -> Tensor:
    return torch.tanh(x @ WEIGHT) + t


def told_our_times(scheduler, times: Tensor):
    """The scheduler with its grid replaced, and timesteps that say where in it each step is."""
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas = times.float()
    scheduler.timesteps = torch.arange(len(times) - 1, 0, -1)
    return scheduler


def trajectory(scheduler, times: Tensor) -> list[Tensor]:
    """The states of a flow scheduler after each step."""
    x, states = NOISE, []
    for index, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, float(times[index])), timestep, x).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (4, 1.0), (20, 7.0), (50, 14.5)])
def test_euler_equals_diffusers(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])  # given so, it shifts once
    times = flow_times(steps, shift)
    torch.testing.assert_close(scheduler.sigmas, times.float())
    found = [step.x for step in euler(velocity, NOISE, times)]
    torch.testing.assert_close(found, trajectory(scheduler, times), **CLOSE)


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (3, 1.0), (8, 5.0), (40, 12.0)])
def test_unipc_equals_diffusers(steps, shift):
    from diffusers import UniPCMultistepScheduler

    times = flow_times(steps, shift, highest=0.999)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=2,
        solver_type="bh2",
    )
    expected = trajectory(told_our_times(scheduler, times), times)
    found = [step.x for step in unipc(velocity, NOISE, times, form=FLOW)]
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(("steps", "shift"), [(2, 5.0), (3, 1.0), (4, 7.0), (5, 2.0), (25, 7.0)])
def test_unipc_without_a_factor_on_the_signal_equals_diffusers_after_a_change_of_variables(steps, shift):
    """diffusers keeps the variance: x / sqrt(1 + t^2), with the same steps and the same clean latents."""
    from diffusers import UniPCMultistepScheduler

    times = flow_times(steps, shift)
    scheduler = UniPCMultistepScheduler(
        prediction_type="sample",
        solver_order=min(3, max(steps - 1, 1)),
        solver_type="bh1",
        lower_order_final=False,
    )
    scheduler = told_our_times(scheduler, times)
    found = list(unipc(velocity, NOISE, times, form=NOISE_ONLY))
    scale = [1 / math.sqrt(1 + float(t) ** 2) for t in times]
    x = NOISE * scale[0]
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        wide = x / scale[index]
        clean = wide - float(times[index]) * velocity(wide, float(times[index]))
        x = scheduler.step(clean, timestep, x).prev_sample
        torch.testing.assert_close(found[index].x, x / scale[index + 1], **CLOSE)
    wide = x / scale[steps - 1]
    clean = wide - float(times[steps - 1]) * velocity(wide, float(times[steps - 1]))
    torch.testing.assert_close(found[-1].x, clean, **CLOSE)


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 5.0), (3, 1.0), (8, 5.0), (40, 12.0)])
def test_dpm_equals_diffusers(steps, shift):
    from diffusers import DPMSolverMultistepScheduler

    times = flow_times(steps, shift)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++"
    )
    expected = trajectory(told_our_times(scheduler, times), times)
    found = [step.x for step in dpm_2m(velocity, NOISE, times)]
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_true_velocity_leads_back_to_the_clean_latent(name, steps):
    clean = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    sampler = SAMPLERS[name]
    times = sampler.times(steps, 3.0)
    start = torch.lerp(clean, noise, times[0].float())
    asked = []

    def denoise(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return noise - clean

    steps_seen = list(sampler.solve(denoise, start, times))
    torch.testing.assert_close(last(steps_seen), clean, atol=1e-4, rtol=1e-4)
    assert [step.index for step in steps_seen] == list(range(steps))
    assert asked == times[:-1].tolist(), "each step asks once, at its own time"
    for step in steps_seen:
        torch.testing.assert_close(step.clean, clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["unipc", "dpm++", "unipc_bh1"])
def test_a_solver_of_higher_order_is_nearer_to_the_end_of_many_steps_than_euler(name):
    true = last(euler(velocity, NOISE, flow_times(4000, 3.0)))

    def error(name: str) -> float:
        sampler = SAMPLERS[name]
        return (last(sampler.solve(velocity, NOISE, sampler.times(20, 3.0))) - true).abs().max().item()

    assert error(name) < error("euler")


def test_shift_keeps_the_ends_and_moves_the_middle():
    t = torch.tensor([0.0, 0.5, 1.0])
    assert shift_time(t, 7.0).tolist() == pytest.approx([0.0, 0.875, 1.0])


def test_the_grid_of_unipc_begins_one_timestep_below_noise_and_tells_whole_timesteps():
    sampler = SAMPLERS["unipc"]
    times = sampler.times(2, 1.0)
    assert times.tolist() == pytest.approx([0.999, 0.4995, 0])
    assert [sampler.told(float(t)) for t in times] == [0.999, 0.499, 0]
    assert all(sampler.told(whole / 1000) == whole / 1000 for whole in range(1001))


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        flow_times(0, 1.0)
    with pytest.raises(ValueError, match="the last time is 0"):
        last(unipc(velocity, NOISE, torch.tensor([0.9, 0.5])))
    with pytest.raises(ValueError, match="infinitely far"):
        last(unipc(velocity, NOISE, torch.tensor([1.0, 0.5, 0.0])))
    with pytest.raises(ValueError, match="no steps"):
        last(iter(()))
