"""A batch lies on one side of the boundary between two experts, and t is distributed as if there were one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musubi_core.errors import ConfigError
from musubi_core.models.spec import Expert
from musubi_core.training.draws import epoch_quantiles, generator_for
from musubi_core.training.options.timesteps import MODES, TimestepOptions
from musubi_core.training.sides import draw_on_one_side, needed_experts
from musubi_core.training.timesteps import distribution, draw, quantile_range

SIZE = {"height": 60, "width": 104}
BATCH = 4


def options_of(mode: str, **values: Any) -> TimestepOptions:
    shifted = {"discrete_flow_shift": 3.0} if mode in ("shift", "sigma") else {}
    return TimestepOptions(timestep_sampling=mode, **{**shifted, **values})


def halves(boundary: float) -> tuple[tuple[float, float], ...]:
    return (0.0, boundary), (boundary, 1.0)


def experts(boundary: float) -> tuple[Expert, Expert]:
    return (
        Expert(name="low", path=Path("low.safetensors"), t_max=boundary),
        Expert(name="high", path=Path("high.safetensors"), t_min=boundary),
    )


SQUEEZED = {"min_timestep": 300, "max_timestep": 950}
RANGES = {"all": {}, "squeezed": SQUEEZED, "cut": {**SQUEEZED, "preserve_distribution_shape": True}}
DRAWN = [  # musubi_sigma takes no preserve_distribution_shape
    pytest.param(mode, values, id=f"{mode}-{name}")
    for mode in MODES
    for name, values in RANGES.items()
    if (mode, name) != ("musubi_sigma", "cut")
]


@pytest.mark.parametrize(("mode", "values"), DRAWN)
@pytest.mark.parametrize("boundary", [0.5, 0.875, 0.9])
def test_every_t_is_on_the_side_of_its_batch_also_as_the_network_is_told(mode, values, boundary):
    options, intervals = options_of(mode, **values), halves(boundary)
    pool = torch.rand(200, BATCH, dtype=torch.float64, generator=generator_for("sides"))
    exact = {side: quantile_range(options, low, high, **SIZE) for side, (low, high) in enumerate(intervals)}
    edges = [end for ends in exact.values() for end in ends]
    leads = [torch.nextafter(torch.tensor(e, dtype=torch.float64), torch.tensor(0.5)).item() for e in edges]
    pool[: len(edges), 0] = torch.tensor(edges, dtype=torch.float64)  # where rounding could cross the line
    pool[len(edges) : 2 * len(edges), 0] = torch.tensor(leads, dtype=torch.float64)
    pool[:50, 1], pool[:50, 2] = 0.0, 1 - 2**-53
    for quantiles in pool:
        side, levels = draw_on_one_side(options, intervals, quantiles, **SIZE)
        low, high = intervals[side]
        told = levels.float().double()
        assert ((told >= low) & ((told < high) | (side == 1))).all(), (side, told, quantiles)


@pytest.mark.parametrize(("mode", "values"), DRAWN)
def test_t_is_distributed_as_in_the_training_of_one_network(mode, values):
    """The largest gap between the cumulative histogram of 80,000 draws and that of the mode itself.

    The quantiles (first, other) of a batch lie on an even grid, so there is no luck in it.
    """
    options = options_of(mode, **values)
    leads = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    others = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    drawn = [
        draw_on_one_side(options, halves(0.875), torch.cat([lead[None], others]), **SIZE)[1] for lead in leads
    ]
    expected = draw(options, (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000, **SIZE).sort()[0]
    for found, fine in (
        (torch.stack(drawn)[:, 0].sort()[0], 1 / 400),
        (torch.stack(drawn)[:, 1:].flatten().sort()[0], 1 / 400 + 1 / 400),
    ):
        at = torch.linspace(0, 1, 501, dtype=torch.float64) + 1e-6
        gap = torch.searchsorted(found, at) / len(found) - torch.searchsorted(expected, at) / len(expected)
        assert gap.abs().max() < fine, mode


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "musubi_sigma"])
def test_the_quantiles_of_a_batch_are_those_of_the_mode_within_the_side(mode):
    """cdf(t) is low + q * (high - low): the draw given that t lies on the side, with no rejection."""
    options = options_of(mode)
    cdf = distribution(options, **SIZE).cdf
    shares = [quantile_range(options, low, high, **SIZE) for low, high in halves(0.875)]
    assert shares[0][1] == shares[1][0]
    for lead in (shares[0][1] * 0.4, 1 - (1 - shares[0][1]) * 0.3):
        quantiles = torch.tensor([lead, 0.1, 0.5, 0.9], dtype=torch.float64)
        side, levels = draw_on_one_side(options, halves(0.875), quantiles, **SIZE)
        low, high = shares[side]
        assert low <= lead < high
        wanted = torch.tensor([lead, *(low + q * (high - low) for q in (0.1, 0.5, 0.9))])
        assert torch.allclose(cdf(levels), wanted.double(), atol=1e-6)


@pytest.mark.parametrize(("mode", "values"), DRAWN)
def test_a_batch_of_one_draws_what_one_network_draws(mode, values):
    options = options_of(mode, **values)
    for quantile in torch.rand(50, dtype=torch.float64, generator=generator_for("one")):
        _, levels = draw_on_one_side(options, halves(0.875), quantile[None], **SIZE)
        assert torch.allclose(levels, draw(options, quantile[None], **SIZE), atol=1e-7, rtol=0)


def test_strata_hold_across_the_batches_of_an_epoch():
    """Eight slices, 64 batches of four: every slice of every side gets the same number of samples."""
    options = options_of("uniform", num_timestep_buckets=8)
    pool = epoch_quantiles(64, 8, generator_for("strata"))
    levels = torch.cat(
        [draw_on_one_side(options, halves(0.5), lead.expand(BATCH), **SIZE)[1] for lead in pool]
    )
    assert torch.bincount((levels * 8).long(), minlength=8).tolist() == [32] * 8
    uneven = torch.cat(
        [draw_on_one_side(options, halves(0.75), lead.expand(BATCH), **SIZE)[1] for lead in pool]
    )
    assert ((uneven >= 0.75).double().mean() - 0.25).abs() < 1e-9


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ["low", "high"]),
        ({"max_timestep": 875}, ["low"]),
        ({"min_timestep": 875}, ["high"]),
        ({"min_timestep": 800}, ["low", "high"]),
        ({"min_timestep": 875, "preserve_distribution_shape": True}, ["high"]),
    ],
)
@pytest.mark.parametrize("mode", ["uniform", "shift", "sigma", "flux_shift", "qinglong_flux", "logsnr"])
def test_an_expert_without_a_share_is_not_needed(mode, values, names):
    found = needed_experts(options_of(mode, **values), experts(0.875), {(60, 104), (8, 8)})
    assert [expert.name for expert in found] == names


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ["low", "high"]),
        ({"max_timestep": 124}, ["high"]),  # counted from noise: t from 0.876
        ({"min_timestep": 126}, ["low"]),
        ({"min_timestep": 125}, ["low", "high"]),  # t = 0.875 belongs to the upper side
    ],
)
def test_the_compatible_sigma_counts_its_range_from_noise(values, names):
    found = needed_experts(options_of("musubi_sigma", **values), experts(0.875), {(60, 104)})
    assert [expert.name for expert in found] == names


def test_what_is_left_to_one_expert_is_never_drawn_beyond_it():
    """squeezed's cdf may leave a rounding error of quantiles on the other side."""
    options = options_of("shift", min_timestep=900)
    quantiles = torch.tensor([0.0, 1e-300, 0.3, 1 - 2**-53], dtype=torch.float64)
    side, levels = draw_on_one_side(options, ((0.9, 1.0),), quantiles, **SIZE)
    assert side == 0
    assert (levels.float().double() >= 0.9).all()
    plain = draw(options, quantiles, **SIZE)
    assert torch.allclose(levels, plain, atol=1e-7, rtol=0)


def test_a_range_where_the_mode_has_nothing_is_refused():
    options = options_of(
        "logsnr", logit_mean=-30.0, logit_std=0.5, max_timestep=10, preserve_distribution_shape=True
    )
    with pytest.raises(ConfigError, match="draws nothing between"):
        needed_experts(options, experts(0.875), {(8, 8)})
