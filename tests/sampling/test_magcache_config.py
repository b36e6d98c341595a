"""What --magcache_mag_ratios may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.sampling.magcache_config import MagCacheConfig, RatioSource, SkipRule, ratio_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("0", RatioSource()),
        (" 0 ", RatioSource()),
        ("ratios.json", RatioSource(file=Path("ratios.json"))),
        ("my;ratios.json", RatioSource(file=Path("my;ratios.json"))),
        ("1.0,1.06, 0.99", RatioSource(lists=((1.0, 1.06, 0.99),))),
        ("1,1.1;1,0.9", RatioSource(lists=((1.0, 1.1), (1.0, 0.9)))),
    ],
)
def test_ratios_are_a_file_lists_or_the_shipped_ones(text: str, source: RatioSource):
    assert ratio_source(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1.05", "a list of 1 ratios"),
        ("1.0,x", "'x' in the list is not a number"),
        ("1.0,", "'' in the list is not a number"),
        ("1.0,0", "ratio 2 is 0.0; expected a positive number"),
        ("1.0,nan", "ratio 2 is nan"),
        ("1.0,inf", "ratio 2 is inf"),
        ("1,1;1,1;1,1", "has 3 lists between semicolons"),
    ],
)
def test_what_is_no_list_of_ratios_is_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        ratio_source(text)


def test_magcache_is_off_unless_ratios_or_a_calibration_are_asked_for():
    assert not MagCacheConfig(magcache_threshold=0.1).on
    assert MagCacheConfig(magcache_mag_ratios="0").on
    assert MagCacheConfig(magcache_calibration=True).on


def test_the_defaults_are_musubi_tuners():
    assert MagCacheConfig().rule == SkipRule(threshold=0.24, k=6, retention=0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("magcache_retention_ratio", 1.5), ("magcache_threshold", -0.1), ("magcache_k", -1)],
)
def test_settings_out_of_range_are_refused(name: str, value: float):
    with pytest.raises(ConfigError, match=name):
        build(MagCacheConfig, {name: value}, where="test")
