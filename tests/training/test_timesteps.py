"""Noise levels against the formulas and numbers of the reference (4.2 to 4.4, 9.2)."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.training.distributions import LEAST_MASS
from musubi_core.training.draws import epoch_quantiles, generator_for
from musubi_core.training.options.timesteps import MODES, TimestepOptions
from musubi_core.training.timesteps import distribution, draw, log_shift

GRID = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
CONTINUOUS = [mode for mode in MODES if mode != "musubi_sigma"]


def options(mode: str, **values) -> TimestepOptions:
    made = build(TimestepOptions, {"timestep_sampling": mode, **values}, where="the test")
    made.check()
    return made


def levels(mode: str, quantiles, *, height=128, width=128, **values) -> list[float]:
    q = torch.as_tensor(quantiles, dtype=torch.float64)
    return draw(options(mode, **values), q, height=height, width=width).tolist()


TENTHS = [0.1, 0.25, 0.5, 0.75, 0.9]


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("sigmoid", {}, [0.2173, 0.3375, 0.5, 0.6625, 0.7827]),
        ("shift", {"discrete_flow_shift": 2.2}, [0.3792, 0.5285, 0.6875, 0.8120, 0.8880]),
        ("shift", {"discrete_flow_shift": 3.0}, [0.4544, 0.6045, 0.75, 0.8548, 0.9153]),
        ("shift", {"discrete_flow_shift": 7.0}, [0.6602, 0.7810, 0.875, 0.9322, 0.9619]),
    ],
)
def test_quantiles_of_sigmoid_and_shift(mode, values, expected):
    assert levels(mode, TENTHS, **values) == pytest.approx(expected, abs=5.1e-5)


def test_medians_of_logsnr():
    assert levels("logsnr", [0.5], logit_mean=-6.0, logit_std=2.0) == pytest.approx([0.9526], abs=5e-5)
    assert levels("logsnr", [0.5], logit_mean=5.36, logit_std=1.0) == pytest.approx([0.0642], abs=5e-5)


@pytest.mark.parametrize(
    ("mode", "height", "width", "shift"),
    [
        ("flux_shift", 64, 64, 1.8776),
        ("flux_shift", 96, 168, 3.1242),
        ("flux_shift", 128, 128, 3.1582),
        ("flux_shift", 166, 166, 5.0671),
        ("qwen_shift", 64, 64, 1.7138),
        ("qwen_shift", 96, 168, 1.9944),
        ("qwen_shift", 128, 128, 2.0008),
        ("qwen_shift", 166, 166, 2.3033),
        ("krea2_shift", 64, 64, 1.7883),
        ("krea2_shift", 96, 168, 2.4583),
        ("krea2_shift", 128, 128, 2.475),
        ("krea2_shift", 166, 166, 3.3259),
        ("flux2_shift", 32, 32, 1.8776),
    ],
)
def test_shifts_grow_with_the_resolution(mode, height, width, shift):
    assert math.exp(log_shift(mode, height, width)) == pytest.approx(shift, abs=1e-3)
    shifted = levels("shift", TENTHS, discrete_flow_shift=math.exp(log_shift(mode, height, width)))
    assert levels(mode, TENTHS, height=height, width=width) == pytest.approx(shifted, abs=1e-12)


def test_ideogram_is_shifted_by_area_and_clamped():
    assert levels("ideogram4_shift", [0.5], height=32, width=32) == pytest.approx([0.5])
    low, high = levels("ideogram4_shift", [0.0, 1.0])
    assert low >= 1 - 1 / (1 + math.exp(-7.5)) - 1e-12
    assert high == pytest.approx(1 - 1 / (1 + math.exp(9)), abs=1e-4)
    middle = 1 / (1 + math.exp(-0.5 * math.log(16 * 128 * 16 * 128 / 512**2)))
    assert levels("ideogram4_shift", [0.5]) == pytest.approx([middle])


def test_sigmoid_scale_widens():
    z = NormalDist().inv_cdf(0.9)
    assert levels("sigmoid", [0.9], sigmoid_scale=2.0) == pytest.approx([1 / (1 + math.exp(-2 * z))])


@pytest.mark.parametrize("mode", CONTINUOUS)
@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_cdf_and_quantile_are_inverse(mode, scheme):
    both = distribution(options(mode, weighting_scheme=scheme, discrete_flow_shift=2.0), height=96, width=168)
    q = GRID[20:-20]
    assert torch.allclose(both.cdf(both.quantile(q)), q, atol=1e-6)
    assert bool((both.quantile(GRID).diff() >= 0).all()), "quantiles rise"


@pytest.mark.parametrize("mode", ["qinglong_flux", "qinglong_qwen"])
def test_qinglong_mixes_in_the_documented_ratios(mode):
    mixed = distribution(options(mode, logit_mean=-6.0, logit_std=2.0), height=128, width=128)
    parts = [
        distribution(options(name, **values), height=128, width=128)
        for name, values in (
            (mode.replace("qinglong_", "") + "_shift", {}),
            ("logsnr", {"logit_mean": -6.0, "logit_std": 2.0}),
            ("logsnr", {"logit_mean": 5.36, "logit_std": 1.0}),
        )
    ]
    for ratios, values in (
        ((0.8, 0.075, 0.125), {}),
        ((0.79, 0.11, 0.10), {"qinglong_ratios": (79, 11, 10)}),
    ):
        mixed = distribution(options(mode, logit_mean=-6.0, logit_std=2.0, **values), height=128, width=128)
        expected = sum(ratio * part.cdf(GRID) for ratio, part in zip(ratios, parts, strict=True))
        assert torch.allclose(mixed.cdf(GRID), expected, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_the_range_means_the_same_in_every_mode(mode):
    q = torch.rand(2000, dtype=torch.float64, generator=generator_for(mode))
    low_noise = draw(options(mode, min_timestep=0, max_timestep=500), q, height=128, width=128)
    if mode == "musubi_sigma":  # counts from noise to clean: that is why it is not called sigma here
        assert low_noise.min() > 0.5
        return
    assert low_noise.min() >= 0
    assert low_noise.max() <= 0.5


@pytest.mark.parametrize("mode", CONTINUOUS)
def test_a_preserved_shape_is_the_distribution_given_the_range(mode):
    whole = distribution(options(mode), height=128, width=128)
    part = options(mode, min_timestep=300, max_timestep=700, preserve_distribution_shape=True)
    inside = GRID[(GRID > 0.3) & (GRID < 0.7)]
    below, above = whole.cdf(torch.tensor([0.3, 0.7], dtype=torch.float64))
    expected = (whole.cdf(inside) - below) / (above - below)
    assert torch.allclose(distribution(part, height=128, width=128).cdf(inside), expected, atol=1e-9)
    drawn = draw(part, GRID, height=128, width=128)
    assert 0.3 <= drawn.min() <= drawn.max() <= 0.7


def test_a_preserved_shape_keeps_strata():
    part = options("shift", min_timestep=500, preserve_distribution_shape=True, discrete_flow_shift=3.0)
    made = distribution(part, height=8, width=8)
    q = epoch_quantiles(40, 4, generator_for("strata"))
    shares = made.cdf(draw(part, q, height=8, width=8))
    assert torch.histc(shares.float(), 4, 0, 1).tolist() == [10, 10, 10, 10]


def test_a_range_without_any_draws_is_refused():
    made = options("logsnr", logit_mean=-20.0, max_timestep=10, preserve_distribution_shape=True)
    assert distribution(options("logsnr", logit_mean=-20.0), height=8, width=8).cdf(GRID[:1]) < LEAST_MASS
    with pytest.raises(ConfigError, match="draws nothing between min_timestep 0 and max_timestep 10"):
        draw(made, GRID, height=8, width=8)


def test_squeezing_moves_the_whole_distribution_into_the_range():
    plain = levels("sigmoid", TENTHS)
    squeezed = levels("sigmoid", TENTHS, min_timestep=200, max_timestep=800)
    assert squeezed == pytest.approx([0.2 + 0.6 * t for t in plain])


def test_sigma_honours_shift_and_scheme():
    assert levels("sigma", [0.5], discrete_flow_shift=3.0) == pytest.approx([0.75])
    noisier = levels("sigma", [0.5], weighting_scheme="logit_normal", logit_mean=1.0)
    assert noisier == pytest.approx([1 / (1 + math.exp(-1))])  # more noise, as in SD3


def test_mode_scheme_has_the_published_values():
    """u' = 1 - u - m (cos^2(pi u / 2) - 1 + u); our quantile q is 1 - u, because u' falls with u."""
    assert levels("sigma", [0.5, 0.75], weighting_scheme="mode", mode_scale=1.29) == pytest.approx(
        [0.5, 1 - 0.25 - 1.29 * (0.853553 - 0.75)], abs=1e-6
    )


def test_musubi_sigma_is_the_table_of_1000():
    assert levels("musubi_sigma", [0.0, 0.5, 0.9999]) == pytest.approx([1.0, 0.5, 0.001])
    drawn = levels("musubi_sigma", GRID, min_timestep=0, max_timestep=500)
    assert min(drawn) > 0.5
    assert all(abs(1000 * t - round(1000 * t)) < 1e-9 for t in drawn)


@pytest.mark.parametrize(
    "name", ["discrete_flow_shift", "preserve_distribution_shape", "num_timestep_buckets"]
)
def test_musubi_sigma_refuses_what_it_would_ignore(name):
    value = {"discrete_flow_shift": 3.0, "preserve_distribution_shape": True, "num_timestep_buckets": 4}[name]
    with pytest.raises(ConfigError, match=f"takes no {name}"):
        options("musubi_sigma", **{name: value})


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="min_timestep 500 is not below max_timestep 500"):
        options("shift", min_timestep=500, max_timestep=500)
    with pytest.raises(ConfigError, match="three percentages"):
        options("qinglong_flux", qinglong_ratios=(80, 10, 5))


def test_options_without_effect_are_named():
    lines = options("sigmoid", discrete_flow_shift=7.0, logit_mean=1.0).without_effect()
    assert [line.split()[0] for line in lines] == ["discrete_flow_shift", "logit_mean"]
    assert options("shift", discrete_flow_shift=7.0).without_effect() == ()


def test_strata_get_equal_shares_before_trimming():
    """Reference 9.2: 10 samples in 4 slices are 12 draws, of which 10 remain."""
    counts = torch.histc(epoch_quantiles(12, 4, generator_for(1)).float(), 4, 0, 1).tolist()
    assert counts == [3, 3, 3, 3]
    trimmed = torch.histc(epoch_quantiles(10, 4, generator_for(1)).float(), 4, 0, 1).tolist()
    assert sum(trimmed) == 10
    assert min(trimmed) >= 1
    assert max(trimmed) == 3
    assert epoch_quantiles(5, 0, generator_for(1)).shape == (5,)
