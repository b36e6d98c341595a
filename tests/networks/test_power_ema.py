"""Golden numbers: reference lora-and-fp8 4.1 to 4.3 and 9; the profile itself by numerical integration."""

from __future__ import annotations

import numpy as np
import pytest

from musubi_core.errors import ConfigError
from musubi_core.networks.power_ema import (
    Profile,
    constant_betas,
    counted_betas,
    exponent_of,
    overlap,
    synthesize,
    weights_at_steps,
    weights_of_betas,
    width_of,
)


@pytest.mark.parametrize(
    ("sigma", "exponent"),
    [
        (0.05, 16.972199),
        (0.10, 6.937204),
        (0.15, 3.55787),
        (0.20, 1.826214),
        (0.25, 0.71982),
        (0.28, 0.169344),
    ],
)
def test_exponents_are_those_of_the_paper(sigma, exponent):
    assert exponent_of(sigma) == pytest.approx(exponent, abs=1e-5)
    assert width_of(exponent_of(sigma)) == pytest.approx(sigma, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.29, 0.5, float("nan")])
def test_a_width_that_no_average_has_is_refused(sigma):
    with pytest.raises(ConfigError, match=r"at most 0\.2887"):
        exponent_of(sigma)


def test_the_widest_average_weighs_everything_alike():
    assert weights_at_steps([10, 20, 30], exponent_of(12**-0.5)) == pytest.approx([1 / 3] * 3)


def test_constant_beta_leaves_most_weight_on_the_oldest():
    weights = weights_of_betas(constant_betas(10, 0.95))
    assert weights[0] == pytest.approx(0.63024941, abs=1e-8)
    assert weights_of_betas(constant_betas(5, 0.95))[0] == pytest.approx(0.8145, abs=1e-4)
    sixteen = weights_of_betas(constant_betas(16, 0.9))
    assert (sixteen[0], sixteen[-1]) == (pytest.approx(0.2059, abs=1e-4), pytest.approx(0.1))


def test_beta_to_beta2_is_a_straight_line():
    weights = weights_of_betas(constant_betas(6, 0.9, 0.95))
    assert weights == pytest.approx([0.67657, 0.07517, 0.07208, 0.06680, 0.05938, 0.05], abs=1e-5)
    assert constant_betas(2, 0.9, 0.95) == [0.9]


def test_counted_files_are_weighed_as_musubi_tuner_does():
    weights = weights_of_betas(counted_betas(4, exponent_of(0.2)))
    assert weights == pytest.approx([0, 0.044828, 0.273099, 0.682072], abs=1e-6)


def test_true_steps_give_the_closed_form():
    weights = weights_at_steps([500, 1000, 1500, 2000], exponent_of(0.2))
    assert weights == pytest.approx([0.01988153, 0.12112034, 0.30250098, 0.55649714], abs=1e-7)


def test_the_decay_of_the_paper_is_reproduced():
    assert (1 - 1 / 10) ** (exponent_of(0.05) + 1) == pytest.approx(0.150535, abs=1e-6)
    assert counted_betas(11, exponent_of(0.10))[-1] == pytest.approx(0.433325, abs=1e-6)


def profile(one, tau):
    values = (one.exponent + 1) * tau**one.exponent / one.time ** (one.exponent + 1)
    return np.where(tau <= one.time, values, 0.0)


def integral(values, tau):
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(tau)))


@pytest.mark.parametrize(
    ("a", "b"), [((7.0, 1000), (17.0, 2000)), ((17.0, 2000), (7.0, 1000)), ((2.0, 2000), (2.0, 2000))]
)
def test_overlap_is_the_integral_of_the_product(a, b):
    first, second = Profile(exponent=a[0], time=a[1]), Profile(exponent=b[0], time=b[1])
    tau = np.linspace(0, 2000, 2_000_001)
    expected = integral(profile(first, tau) * profile(second, tau), tau)
    assert overlap(first, second) == pytest.approx(expected, rel=1e-4)


def stored(widths, times):
    return [Profile(exponent=exponent_of(width), time=time) for time in times for width in widths]


def test_the_golden_synthesis():
    found = synthesize(stored((0.05, 0.10), (1000, 2000)), Profile(exponent=exponent_of(0.15), time=2000))
    assert found.weights == pytest.approx([-0.014496, 0.050141, -0.340512, 1.304867], abs=1e-6)


@pytest.mark.parametrize(
    ("widths", "snapshots", "target", "error"),
    [
        ((0.05, 0.10), 8, 0.15, 0.033),
        ((0.05, 0.10), 8, 0.20, 0.078),
        ((0.05, 0.10), 8, 0.25, 0.18),
        ((0.05, 0.10), 16, 0.15, 0.009),
        ((0.05, 0.10), 16, 0.20, 0.023),
        ((0.05, 0.10), 16, 0.25, 0.079),
        ((0.05, 0.10, 0.25), 8, 0.20, 0.003),
    ],
)
def test_the_profile_is_reached_within_the_error_of_the_reference(widths, snapshots, target, error):
    times = [2000 * (index + 1) / snapshots for index in range(snapshots)]
    have, want = stored(widths, times), Profile(exponent=exponent_of(target), time=2000)
    found = synthesize(have, want)
    assert found.error <= error * 1.06  # the table is rounded
    tau = np.linspace(0, 2000, 200_001)
    reached = sum(x * profile(one, tau) for x, one in zip(found.weights, have, strict=True))
    wanted = profile(want, tau)
    distance = np.sqrt(integral((reached - wanted) ** 2, tau) / integral(wanted**2, tau))
    # The weights are normalised afterwards, the error is that of the solution itself.
    assert distance == pytest.approx(found.error, rel=0.1, abs=2e-3)


def test_a_stored_average_is_given_back_as_it_is():
    have = stored((0.05, 0.10), (500, 1000))
    found = synthesize(have, have[3])
    assert found.weights == pytest.approx([0, 0, 0, 1], abs=1e-7)
    assert found.error < 1e-6


def test_an_average_of_the_future_is_refused():
    with pytest.raises(ConfigError, match="last stored one is from step 1000"):
        synthesize(stored((0.05, 0.10), (500, 1000)), Profile(exponent=1.0, time=1500))
