"""How many blocks --blocks_to_swap may name, and which they are."""

from __future__ import annotations

import itertools

import pytest

from musubi_core.errors import ConfigError
from musubi_core.offload.config import SwapConfig
from musubi_core.offload.groups import SwapRule, double_and_single, spread

HUNYUAN = SwapRule(share=double_and_single)
FLUX = SwapRule(share=double_and_single, stay=2)


@pytest.mark.parametrize(
    ("rule", "sizes", "most"),
    [(HUNYUAN, (20, 40), 38), (FLUX, (19, 38), 34), (SwapRule(), (40,), 39), (SwapRule(), (30,), 29)],
)
def test_the_limits_are_musubi_tuners(rule, sizes, most):
    assert rule.most(sizes) == most
    with pytest.raises(ConfigError, match=f"use 0 to {most}"):
        rule.counts(most + 1, sizes)
    with pytest.raises(ConfigError, match=f"use 0 to {most}"):
        rule.counts(-1, sizes)
    assert all(rule.counts(blocks, sizes) for blocks in range(most + 1))


def test_blocks_are_divided_as_musubi_tuner_does():
    assert [HUNYUAN.counts(n, (20, 40)) for n in (0, 1, 36, 37, 38)] == [
        *((0, 0), (0, 3), (18, 37), (18, 39), (19, 39)),
    ]


def test_swapped_blocks_are_evenly_spaced():
    assert spread(60, 16)[:6] == (1, 5, 9, 13, 16, 20)
    assert spread(40, 20) == tuple(range(1, 40, 2))
    assert spread(5, 0) == ()
    for size in range(1, 30):
        for count in range(1, size + 1):
            places = spread(size, count)
            assert len(set(places)) == count
            assert places[0] >= 0
            assert places[-1] < size
            gaps = {b - a for a, b in itertools.pairwise(places)}
            assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "values", [{"blocks_to_swap": 4}, {"gradient_checkpointing_cpu_offload": True}], ids=str
)
def test_offload_without_checkpointing_is_refused(values):
    with pytest.raises(ConfigError, match="--gradient_checkpointing"):
        SwapConfig(**values).check(checkpointing=False)
    SwapConfig(**values).check(checkpointing=True)
