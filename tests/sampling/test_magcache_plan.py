"""Which steps MagCache skips, against published plans and an independent transcription of the algorithm."""

from __future__ import annotations

import itertools

import pytest
import torch
from magcache_reference import interpolated, skips

from musubi_core.sampling.magcache import (
    MagCacheState,
    always_computed,
    nearest,
    skip_plan,
)
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_tables import RatioTable, shipped_tables

TABLES = shipped_tables()
RULES = [
    SkipRule(threshold=threshold, k=k, retention=retention)
    for threshold, k, retention in itertools.product(
        (0.0, 0.02, 0.06, 0.12, 0.24, 1.0), (0, 1, 2, 4, 6, 20), (0.0, 0.1, 0.2, 0.4, 1.0)
    )
]
STEPS = (1, 4, 5, 8, 10, 15, 20, 25, 26, 28, 30, 33, 40, 50, 64, 99, 100)

# (architecture, variant, steps of the table, steps of the run) -> skipped steps with the table's own settings
GOLDEN = {
    ("flux", "dev", 28, 28): "2 4 5 7-9 11-15 17-21 23-25 27",
    ("flux", "dev", 28, 20): "2 3 5-7 9-13 15-18",
    ("flux_kontext", "dev", 28, 28): "5 6 8 9 11-14 16-19 21 22 24",
    ("flux_kontext", "dev", 20, 20): "4 6 8 9 11 12 14 15 17 18",
    ("chroma", "base", 26, 26): "6 8 9 11 12 14 15 17 18 20 21 23 25",
    ("qwen_image", "base", 50, 50): "16 20 22 24 26 28 30 32 33 35 36 38 40",
    ("qwen_image", "base", 50, 20): "9 11 13 14",
    ("qwen_image", "edit", 50, 50): "13 15 17 19 21 23 25 27 28 30 31 33 34 36 38",
    ("hunyuan_video", "t2v-720p", 50, 50): "10-13 15-17 19-22 24-28 30-33 35-40 42-45 47",
    ("hunyuan_video", "t2v-720p", 50, 30): "6-8 10-13 15-18 20-25 27 28",
    ("hunyuan_video", "t2v-544p", 50, 50): "10-13 15-17 19-22 24-28 30-33 35-40 42-45 47 49",
    ("framepack", "base", 25, 25): "5 6 8 10 11 13 14 16 17 19-21 23",
    ("framepack", "f1", 25, 25): "5 6 8 10 11 13-15 17-19 21 23",
    ("wan", "t2v-1.3B", 50, 50): "10-13 15-18 20-23 25-28 30-33 35-37 39 40 42 43 45 47",
    ("wan", "t2v-14B", 50, 50): "10-15 17-22 24-29 31-35 37-40 42 43 45 46 48",
    ("wan", "t2v-14B", 50, 30): "6-11 13-18 20-23 25 26 28",
    ("wan", "i2v-14B-480p", 40, 40): "8-13 15-19 21-24 26-29 31-33 35 36 38",
    ("wan", "i2v-14B-720p", 40, 40): "8-13 15-20 22-26 28-31 33 34 36 37 39",
    (
        "wan",
        "ti2v-5B-t2v",
        50,
        50,
    ): "10 11 13 14 16 17 19 20 22 23 25 26 28 29 31 32 34 35 37 39 41 43 45 47 49",
}
# how many steps of the conditional branch are skipped at retention 0.2, by (threshold, k)
SETTINGS = ((0.02, 2), (0.06, 2), (0.06, 4), (0.12, 4), (0.24, 4), (0.24, 6))
COUNTS = {
    ("flux", "dev", 28, 28): (8, 13, 14, 17, 18, 19),
    ("flux", "dev", 28, 20): (6, 9, 10, 12, 13, 13),
    ("qwen_image", "base", 50, 20): (3, 4, 5, 8, 10, 10),
    ("qwen_image", "base", 50, 50): (6, 13, 13, 21, 26, 26),
    ("chroma", "base", 26, 26): (8, 11, 12, 15, 16, 17),
    ("hunyuan_video", "t2v-720p", 50, 50): (15, 22, 22, 28, 31, 31),
    ("hunyuan_video", "t2v-720p", 50, 20): (6, 9, 9, 11, 12, 13),
    ("wan", "t2v-1.3B", 50, 50): (17, 23, 26, 29, 31, 32),
    ("wan", "t2v-14B", 50, 30): (10, 14, 15, 17, 19, 19),
    ("wan", "i2v-14B-480p", 40, 20): (5, 8, 8, 11, 13, 13),
    ("wan", "t2v-A14B", 40, 20): (7, 9, 10, 12, 13, 13),
    ("framepack", "base", 25, 25): (7, 11, 12, 13, 16, 16),
}


def table_of(architecture: str, variant: str, steps: int) -> RatioTable:
    (found,) = [
        table
        for table in TABLES
        if (table.architecture, table.variant, table.steps) == (architecture, variant, steps)
    ]
    return found


def steps_of(words: str) -> list[int]:
    """ "2 4-6" -> [2, 4, 5, 6]"""
    ranges = [(word.split("-")[0], word.split("-")[-1]) for word in words.split()]
    return [step for first, last in ranges for step in range(int(first), int(last) + 1)]


def planned(ratios: tuple[float, ...], rule: SkipRule, serving: list[int] | None = None) -> list[int]:
    fixed = always_computed(serving or [0] * len(ratios), rule.retention)
    return [step for step, skip in enumerate(skip_plan(ratios, rule, fixed)) if skip]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: " ".join(map(str, case)))
def test_published_settings_skip_the_published_steps(case: tuple[str, str, int, int]):
    architecture, variant, measured, steps = case
    table = table_of(architecture, variant, measured)
    assert table.recommended is not None
    for branch in table.ratios:
        plan = planned(nearest(table.of(branch), steps), table.recommended)
        assert plan == steps_of(GOLDEN[case]), branch


@pytest.mark.parametrize("case", COUNTS, ids=lambda case: " ".join(map(str, case)))
def test_as_many_steps_are_skipped_as_published(case: tuple[str, str, int, int]):
    ratios = nearest(table_of(*case[:3]).of("cond"), case[3])
    rules = [SkipRule(threshold=threshold, k=k, retention=0.2) for threshold, k in SETTINGS]
    assert tuple(len(planned(ratios, rule)) for rule in rules) == COUNTS[case]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_plan_is_the_reference_algorithms(table: RatioTable):
    for (branch, ratios), steps in itertools.product(table.ratios.items(), STEPS):
        expected_ratios = interpolated(list(ratios), steps)
        assert list(nearest(ratios, steps)) == expected_ratios, (branch, steps)
        for rule in RULES:
            expected = skips(expected_ratios, rule.threshold, rule.k, rule.retention)
            assert planned(tuple(expected_ratios), rule) == expected, (branch, steps, rule)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_run_decides_step_by_step_as_planned(table: RatioTable):
    for rule, steps in itertools.product(RULES[::7], (4, 23, 50, 100)):
        ratios = nearest(table.of("uncond"), steps)
        assert run_through(MagCacheState(ratios, rule), steps) == planned(ratios, rule), (rule, steps)


def run_through(state: MagCacheState, steps: int) -> list[int]:
    """The steps at which the blocks were not run."""
    skipped = []
    for step in range(steps):
        if state.decide(step):
            state.reuse(step)
            skipped.append(step)
        else:
            state.remember(step, torch.zeros(1))
    return skipped


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_of_two_networks_begins_with_steps_of_its_own(rule: SkipRule):
    """As the authors run Wan 2.2 A14B from text: each network keeps the first part of its own steps."""
    ratios = table_of("wan", "t2v-A14B", 40).of("cond")
    for switch in (1, 7, 13, 39):
        serving = [1] * switch + [0] * (40 - switch)
        expected = skips(list(ratios), rule.threshold, rule.k, rule.retention, starts=(0, switch))
        assert planned(ratios, rule, serving) == expected
        assert switch not in expected


def test_where_one_network_alone_may_skip_the_other_never_does():
    """As the authors run Wan 2.2 A14B from pictures: the network for high noise is left alone."""
    serving = ["high_noise"] * 12 + ["low_noise"] * 28
    fixed = always_computed(serving, 0.1, cached=("low_noise",))
    assert [step for step, kept in enumerate(fixed) if kept] == list(range(12 + 2))


def test_the_tables_own_number_of_steps_is_not_interpolated():
    for table in TABLES:
        assert nearest(table.of("cond"), table.steps) == table.of("cond")


def test_one_step_takes_the_last_ratio_and_is_computed():
    ratios = TABLES[0].of("cond")
    assert nearest(ratios, 1) == (ratios[-1],)
    assert planned(nearest(ratios, 1), SkipRule(threshold=9.0, k=9, retention=0.0)) == []


@pytest.mark.parametrize("rule", [SkipRule(threshold=0.0), SkipRule(k=0), SkipRule(retention=1.0)], ids=str)
def test_nothing_is_skipped_with_nothing_allowed(rule: SkipRule):
    """Also where ratios are exactly 1, as several published ones are: threshold 0 means never."""
    assert planned((1.0,) * 50, rule) == []
