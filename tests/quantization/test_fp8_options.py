"""Options of 8-bit weights: what contradicts itself or would do nothing is refused."""

from __future__ import annotations

from typing import Any

import pytest

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.quantization.config import Fp8Options
from musubi_core.quantization.scheme import QuantisationConfig, Scheme


def options(**values: Any) -> Fp8Options:
    return build(Fp8Options, values, where="the test")


def request(found: Fp8Options) -> QuantisationConfig | None:
    return found.request(targets=("blocks",), keep_precise=("norm",), architecture="x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fp8_scaled": True}, "--fp8_scaled needs --fp8_base"),
        ({"fp8_base": True, "fp8_fast": True}, "--fp8_fast has no effect"),
        ({"fp8_base": True, "upcast_fp8": True}, "--upcast_fp8 has no effect"),
        ({"fp8_base": True, "fp8_format": "e5m2"}, "a format, granularity or block size"),
        ({"fp8_granularity": "channel"}, "a format, granularity or block size"),
        ({"fp8_base": True, "fp8_scaled": True, "fp8_fast": True}, "--fp8_granularity channel"),
    ],
)
def test_what_would_do_nothing_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        options(**values).check()


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ({}, Scheme(format="e4m3", granularity="block", block=64)),
        ({"fp8_format": "e5m2"}, Scheme(format="e5m2")),
        ({"fp8_granularity": "tensor"}, Scheme(granularity="tensor")),
        ({"fp8_block_size": 128}, Scheme(block=128)),
    ],
)
def test_what_is_asked_for_reaches_the_loader(values, scheme):
    found = options(fp8_base=True, fp8_scaled=True, **values)
    found.check()
    asked = request(found)
    assert asked == QuantisationConfig(targets=("blocks",), keep_precise=("norm",), scheme=scheme)


def test_without_options_weights_stay_as_they_are():
    options().check()
    assert request(options()) is None


def test_fp8_base_alone_is_a_cast_without_scales():
    options(fp8_base=True).check()
    asked = request(options(fp8_base=True))
    assert asked is not None and asked.scheme is None


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("blocks.0.attn.q.weight", True),
        ("model.diffusion_model.blocks.0.attn.q.weight", True),
        ("blocks.0.norm1.weight", False),
        ("double_blocks.0.attn.weight", False),
        ("head.weight", False),
    ],
)
def test_targets_are_whole_parts_of_a_name(name, covered):
    assert QuantisationConfig(targets=("blocks",), keep_precise=("norm",)).covers(name) is covered
