"""What a plan proposes is enough, predicted each time, and the cheapest there is in time."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from fake_arch import FAKE, config_for, write_workplace

from musubi_core.offload.groups import SwapRule
from musubi_core.training.opening import Opened, open_run
from musubi_core.training.plan.largest import AS_IS
from musubi_core.training.plan.measures import (
    CHECKPOINT_COST,
    FP8_COST,
    OFFLOAD_COST,
    SWAP_COST,
    Size,
    Suggestion,
    Trial,
    cheapest,
)
from musubi_core.training.processes import Processes

BLOCKS = 40
SIZE = Size(frames=9, temporal=4, width=128, height=64)
SPEC = dataclasses.replace(FAKE, fp8_targets=("blocks",), swap=SwapRule(stay=1))


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path)


def opened(place, **options) -> Opened:
    here = Processes(device=torch.device("cpu"), precision="no")
    return open_run(config_for(place, **options), SPEC, here, lambda event: None)


def needed(*, checkpointing: bool, fp8: bool, offload: bool, blocks: int) -> int:
    """Any made-up card: what settings save is not simply added up."""
    weights = 500 if fp8 else 1000
    activations = (60 if offload else 150) if checkpointing else 900
    return weights - weights * blocks // 44 + activations + 50


class Card:
    """A predictor that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, trial: Trial) -> SimpleNamespace:
        config = trial.opened.config
        size = needed(
            checkpointing=config.loop.gradient_checkpointing,
            fp8=config.fp8.fp8_base,
            offload=config.swap.gradient_checkpointing_cpu_offload,
            blocks=config.swap.blocks_to_swap,
        )
        if trial.shrink != AS_IS:
            size = size * (trial.shrink.frames or 9) // 9
        self.asked.append(size)
        return SimpleNamespace(needed=size)


def proposed(run: Opened, limit: int, card: Card | None = None) -> tuple[Suggestion, ...]:
    card = card or Card()
    trial = Trial(opened=run)
    return cheapest(trial, card(trial), limit, size=SIZE, lists=[BLOCKS], predict=card)


def cheapest_cost(limit: int) -> float | None:
    """By trying out everything; swap and offload need checkpointing."""
    costs = []
    for checkpointing, fp8, offload in itertools.product((False, True), repeat=3):
        for blocks in range(BLOCKS):
            if (offload or blocks) and not checkpointing:
                continue
            if needed(checkpointing=checkpointing, fp8=fp8, offload=offload, blocks=blocks) <= limit:
                cost = checkpointing * CHECKPOINT_COST + fp8 * FP8_COST + offload * OFFLOAD_COST
                costs.append(cost + SWAP_COST * blocks / (BLOCKS - 1))
    return min(costs, default=None)


@pytest.mark.parametrize("limit", [1900, 1500, 1210, 1100, 900, 700, 500, 300, 200, 170])
def test_the_first_proposal_is_the_fastest_of_all_that_fit(place, limit):
    first = proposed(opened(place), limit)[0]
    best = cheapest_cost(limit)
    assert best is not None
    assert first.cost.startswith(f"about +{100 * best:.0f} % time")
    assert first.needed <= limit


@pytest.mark.parametrize("limit", [1500, 1100, 700, 300])
def test_every_proposal_is_enough_and_its_settings_need_what_it_says(place, limit):
    card = Card()
    found = proposed(opened(place), limit, card)
    assert 1 < len(found) <= 4
    for one in found:
        assert one.needed <= limit
        assert one.needed in card.asked
        if one.config is not None:
            trial = Trial(opened=dataclasses.replace(opened(place), config=one.config))
            assert card(trial).needed == one.needed
            one.config.check()
    costs = [int(one.cost.split("+")[1].split()[0]) for one in found if one.config is not None]
    assert costs == sorted(costs)
    if limit >= 700:
        assert "frames" in found[-1].text, "and what smaller media would do"
        assert found[-1].config is None


def test_nothing_is_proposed_beside_what_is_enough_alone(place):
    texts = [one.text for one in proposed(opened(place), 1500)]
    assert texts[:2] == ["--fp8_base --fp8_scaled", "--gradient_checkpointing"]
    assert not any("--gradient_checkpointing --" in text for text in texts)


def test_settings_of_the_user_stay_and_are_not_proposed_again(place):
    run = opened(place, gradient_checkpointing=True, blocks_to_swap=10)
    found = proposed(run, 700)
    assert found[0].text.startswith("--")
    assert not any("--gradient_checkpointing " in f"{one.text} " for one in found)
    configs = [one.config for one in found if one.config is not None]
    assert all(config.swap.blocks_to_swap >= 10 for config in configs)


def test_what_contradicts_the_user_is_not_proposed(place):
    run = opened(place, dynamo_backend="INDUCTOR")  # cannot be combined with swap
    assert not any("swap" in one.text for one in proposed(run, 300))


def test_where_settings_are_not_enough_smaller_media_come_on_top_of_them(place):
    (one,) = proposed(opened(place), 120)
    assert "--blocks_to_swap 39" in one.text
    assert "--fp8_base" in one.text
    assert one.text.endswith("frames")
    assert one.needed <= 120
    assert one.config is None


def test_when_nothing_is_enough_the_strongest_is_named(place):
    (one,) = proposed(opened(place), 1)
    assert one.needed > 1
    assert "--blocks_to_swap 39" in one.text
