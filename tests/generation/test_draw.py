"""The drawing loop, for every architecture with its tiny networks, text encoders and VAE."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from musubi_core.generation.draw import draw, start_noise
from musubi_core.generation.networks import sides
from musubi_core.models.registry import SPECS
from musubi_core.sampling.evaluation import COND, UNCOND, asked
from musubi_core.sampling.guidance import guided
from musubi_core.sampling.solving import flow_times

every = pytest.mark.parametrize("name", SPECS)


@every
def test_the_same_seed_draws_the_same_picture_bitwise_whatever_else_is_random(tiny, name):
    model = tiny(name)
    conditions = model.conditions()
    torch.manual_seed(1)
    one = draw(model.networks, conditions)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = draw(model.networks, model.conditions())
    assert torch.equal(torch.get_rng_state(), before), "nothing global was drawn from"
    assert torch.equal(one, two)
    other = draw(model.networks, model.conditions(seed=2))
    assert not torch.equal(one, other)
    assert model.codec.decode(one).shape[1:] == (conditions.settings.frames, 48, 32, 3)


@every
def test_a_drawing_is_euler_over_the_velocity_of_the_network(tiny, name):
    """The loop written out by hand, without guidance: what `draw` adds is only bookkeeping."""
    model = tiny(name)
    sampler = "euler" if "euler" in model.spec.sampling.samplers else "vanilla"
    conditions = model.conditions(sampler=sampler, cfg_scale=1.0, flow_shift=3.0)
    spec, options = model.spec, model.options
    batch = {
        key.removeprefix("varlen_"): [value] if key.startswith("varlen_") else value[None]
        for key, value in conditions.text.items()
    }
    with torch.no_grad():
        x = start_noise(model.networks, conditions)
        conditioning = spec.sample_conditioning(batch, conditions.settings.guidance, options)
        times = flow_times(3, 3.0).tolist()
        for t, t_next in pairwise(times):
            velocity = spec.predict(model.networks.at_work(0), x, torch.tensor([t]), conditioning, options)
            x = x + (t_next - t) * velocity
    torch.testing.assert_close(draw(model.networks, conditions), x, atol=1e-6, rtol=1e-6)


@every
def test_guidance_one_question_at_a_time_equals_both_in_one_batch(tiny, name):
    """In float32 the two differ by how matrices of other sizes are summed up, no more."""
    model = tiny(name)
    conditions = model.conditions(cfg_scale=3.0, negative_prompt="two cats on a very long sofa")
    calls: list[int] = []

    def counted(side: int):
        calls.append(side)
        return model.networks.at_work(side)

    networks = replace(model.networks, at_work=counted)
    found: list[Tensor] = []
    for split, expected in ((False, 3), (True, 6)):
        calls.clear()
        settings = replace(conditions.settings, split_uncond=split)
        found.append(draw(networks, replace(conditions, settings=settings)))
        assert len(calls) == expected
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    plain = draw(model.networks, model.conditions(cfg_scale=1.0))
    assert (found[0] - plain).abs().max() > 1e-3, "guidance changes the picture"


@every
def test_a_wrapper_sees_each_branch_of_each_step_and_may_leave_the_answer_as_it_is(tiny, name):
    model = tiny(name)
    conditions = model.conditions(cfg_scale=3.0)
    split = replace(conditions, settings=replace(conditions.settings, split_uncond=True))
    seen = []

    def wrapper(evaluation, ask):
        seen.append((evaluation.step, evaluation.branch, evaluation.side, evaluation.steps))
        return asked(evaluation, ask)

    assert torch.equal(draw(model.networks, conditions, wrapper=wrapper), draw(model.networks, split))
    assert seen == [(step, branch, 0, 3) for step in range(3) for branch in (COND, UNCOND)]


def test_a_wrapper_may_choose_another_way_through_the_blocks(tiny):
    model = tiny("hunyuan_video")
    conditions = model.conditions()

    def past_all_blocks(evaluation, ask):
        return ask(lambda blocks, tokens: tokens)

    past = draw(model.networks, conditions, wrapper=past_all_blocks)
    assert not torch.equal(past, draw(model.networks, conditions))


@every
def test_every_step_is_told_and_a_stop_ends_the_drawing(tiny, name):
    model = tiny(name)
    conditions = model.conditions()
    steps = []
    result = draw(model.networks, conditions, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    assert torch.equal(steps[-1].x, result)
    assert all(step.clean.shape == result.shape for step in steps)

    steps.clear()
    assert draw(model.networks, conditions, on_step=steps.append, should_stop=lambda: bool(steps)) is None
    assert len(steps) == 1
    steps.clear()
    assert draw(model.networks, conditions, on_step=steps.append, should_stop=lambda: True) is None
    assert not steps


@every
def test_every_sampler_of_an_architecture_draws(tiny, name):
    model = tiny(name)
    drawn = [draw(model.networks, model.conditions(sampler=one)) for one in model.spec.sampling.samplers]
    assert all(torch.isfinite(latent).all() for latent in drawn)


def test_a_scale_of_one_asks_once_and_a_rescale_gets_the_prompts_own_velocity(tiny):
    model = tiny("hunyuan_video")
    seen = []

    def rescale(velocity: Tensor, cond: Tensor) -> Tensor:
        seen.append((velocity, cond))
        return cond

    usual = replace(model.spec.sampling, rescale=rescale)
    networks = replace(model.networks, spec=replace(model.spec, sampling=usual, sampling_for=None))
    plain = draw(networks, model.conditions(cfg_scale=1.0))
    assert not seen
    rescaled = draw(networks, model.conditions(cfg_scale=4.0))
    assert len(seen) == 3
    torch.testing.assert_close(rescaled, plain, atol=1e-4, rtol=1e-4)


def test_guided_is_the_line_through_both_answers():
    cond, uncond = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    assert guided(cond, uncond, 4.0).tolist() == [9.0, 1.0]


def test_each_step_asks_the_network_whose_noise_levels_it_belongs_to(tiny):
    model = tiny("wan/t2v-A14B")
    low = model.networks.experts[0]
    pair = (replace(low, t_max=0.875), replace(low, t_min=0.875, cfg_scale=1.0))
    called: list[int] = []

    def at_work(side: int):
        called.append(side)
        return model.networks.at_work(0)

    networks = replace(model.networks, experts=pair, at_work=at_work)
    conditions = model.conditions(steps=8, flow_shift=5.0, cfg_scale=1.0)
    conditions = replace(conditions, settings=replace(conditions.settings, cfg_scales=(1.0, 1.0)))
    draw(networks, conditions)
    # times of eight steps with shift 5, as whole timesteps: 999, 971, 937, 892, 832, ...
    assert tuple(called) == (1, 1, 1, 1, 0, 0, 0, 0) == sides(conditions.settings, pair)
