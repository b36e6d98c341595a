"""Ratios for steps that stand elsewhere than those that were measured."""

from __future__ import annotations

import math

import pytest

from musubi_core.sampling.magcache import always_computed, skip_plan
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_curve import even_positions, position_of, ratios_at
from musubi_core.sampling.magcache_tables import shipped_tables


@pytest.mark.parametrize("table", shipped_tables(), ids=lambda table: table.name)
def test_the_measured_steps_keep_their_ratios_and_their_plan(table):
    rule = table.recommended or SkipRule()
    computed = always_computed([0] * table.steps, rule.retention)
    for ratios in table.ratios.values():
        places = even_positions(table.steps)
        rounded = [round(1000 * place) / 1000 for place in places]  # as schedulers with 1000 levels do
        for wanted in (places, rounded):
            found = ratios_at(ratios, places, wanted)
            assert found == pytest.approx((1.0, *ratios[1:]), rel=1e-12)
            assert skip_plan(found, rule, computed) == skip_plan(ratios, rule, computed)


def test_a_step_of_double_size_has_the_product_of_two_ratios():
    ratios = (1.0, 1.2, 0.9, 0.8, 0.7, 0.6)
    found = ratios_at(ratios, even_positions(6), even_positions(3))
    assert found == pytest.approx((1.0, 1.2 * 0.9, 0.8 * 0.7))


def test_half_steps_have_the_root_and_the_end_goes_on_as_before():
    found = ratios_at((1.0, 0.81, 0.64), even_positions(3), even_positions(6))
    assert found == pytest.approx((1.0, 0.9, 0.9, 0.8, 0.8, 0.8))


def test_a_part_of_the_schedule_has_the_ratios_of_that_part():
    ratios = (1.0, 1.2, 0.9, 0.8, 0.7, 0.6)
    places = even_positions(6)
    assert ratios_at(ratios, places, places[3:]) == pytest.approx((1.0, 0.7, 0.6))


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_position_is_found_from_its_noise(shift):
    def noise_at(place: float) -> float:
        return shift * (1 - place) / (1 + (shift - 1) * (1 - place))

    for place in (0.0, 0.1, 0.5, 0.97, 1.0):
        assert math.isclose(position_of(noise_at(place), noise_at), place, abs_tol=1e-9)
