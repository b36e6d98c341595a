"""Learning-rate schedules against transformers, and REX against the reference's numbers."""

from __future__ import annotations

import pytest
import torch

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.training.options.schedule import ScheduleOptions
from musubi_core.training.schedules import schedule

RATE, TOTAL = 1e-4, 100


def made(name: str, **values) -> ScheduleOptions:
    options = build(ScheduleOptions, {"lr_scheduler": name, **values}, where="the test")
    options.check()
    return options


def rates(name: str, total: int = TOTAL, **values) -> list[float]:
    multiplier = schedule(made(name, **values), total=total, learning_rate=RATE)
    return [RATE * multiplier(step) for step in range(total + 1)]


def transformers_rates(name: str, *, warmup: int = 0, **arguments) -> list[float]:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
        scheduler_specific_kwargs=arguments,
    )
    found = []
    for _ in range(TOTAL + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("constant", {}, {}),
        ("constant_with_warmup", {"lr_warmup_steps": 10}, {"warmup": 10}),
        ("linear", {"lr_warmup_steps": 10}, {"warmup": 10}),
        ("cosine", {"lr_warmup_steps": "10%"}, {"warmup": 10}),
        ("cosine_with_restarts", {"lr_scheduler_num_cycles": 3}, {"num_cycles": 3}),
        (
            "cosine_with_restarts",
            {"lr_scheduler_num_cycles": 3, "lr_warmup_steps": 7},
            {"warmup": 7, "num_cycles": 3},
        ),
        ("polynomial", {"lr_scheduler_power": 2.0}, {"power": 2.0}),
        ("polynomial", {"lr_warmup_steps": 0.2}, {"warmup": 20}),
        ("inverse_sqrt", {"lr_warmup_steps": 10}, {"warmup": 10}),
        ("inverse_sqrt", {"lr_scheduler_timescale": 30}, {"timescale": 30}),
        (
            "cosine_with_min_lr",
            {"lr_scheduler_min_lr_ratio": 0.1, "lr_warmup_steps": 10},
            {"warmup": 10, "min_lr_rate": 0.1},
        ),
        (
            "warmup_stable_decay",
            {"lr_warmup_steps": 10, "lr_decay_steps": 30, "lr_scheduler_min_lr_ratio": 0.2},
            {"warmup": 10, "num_decay_steps": 30, "min_lr_ratio": 0.2},
        ),
        ("warmup_stable_decay", {"lr_decay_steps": "25%"}, {"num_decay_steps": 25}),
        (
            "piecewise_constant",
            {"lr_scheduler_args": ("step_rules=1:10,0.1:20,0.01",)},
            None,
        ),
    ],
)
def test_schedules_equal_transformers(name, ours, theirs):
    if theirs is None:  # diffusers' schedule; transformers has none of this name
        expected = [RATE * (1 if s < 10 else 0.1 if s < 20 else 0.01) for s in range(TOTAL + 1)]
    else:
        expected = transformers_rates(name, **theirs)
    assert rates(name, **ours) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_rex_has_the_reference_numbers():
    found = rates("rex")
    golden = {
        0: 1e-4,
        1: 9.99e-5,
        25: 9.6806e-5,
        50: 9.1e-5,
        75: 7.7154e-5,
        90: 5.3105e-5,
        99: 1.0083e-5,
        100: 1e-6,
    }
    for step, rate in golden.items():
        assert found[step] == pytest.approx(rate, rel=5e-5)


def test_rex_warms_up_from_its_least_rate():
    """In musubi-tuner the very first step of a warm-up was at 5.6e-5 instead of 1e-6."""
    found = rates("rex", lr_warmup_steps=10)
    assert found[0] == pytest.approx(1e-6)
    assert found[1] == pytest.approx(1e-6)
    assert found[9] == pytest.approx(1e-6 + (1e-4 - 1e-6) * 8 / 9)
    assert found[10] == pytest.approx(1e-4)
    assert found[100] == pytest.approx(1e-6)


def test_rex_takes_its_own_arguments():
    half = rates("rex", lr_scheduler_args=("rex_alpha=0.5", "rex_beta=0.5"))
    assert half[50] == pytest.approx(RATE * (0.01 + 0.99 * 0.5 / (0.5 + 0.25)))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("constant", {"lr_warmup_steps": 5}, "constant_with_warmup"),
        ("cosine", {"lr_warmup_steps": 1.5}, "whole steps"),
        ("cosine", {"lr_warmup_steps": "150%"}, "below 100%"),
        ("cosine", {"lr_warmup_steps": "soon"}, "steps such as 100"),
        ("cosine_with_min_lr", {}, "lr_scheduler_min_lr_ratio"),
        ("piecewise_constant", {}, "step_rules"),
        ("cosine", {"lr_scheduler_args": ("rex_alpha=1",)}, "does not know it"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(name, values, message):
    with pytest.raises(ConfigError, match=message):
        made(name, **values)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="do not fit into 100 steps"):
        rates("cosine", lr_warmup_steps=101)


def test_broken_step_rules_are_refused():
    with pytest.raises(ConfigError, match="multiplier"):
        rates("piecewise_constant", lr_scheduler_args=("step_rules=1:x,2",))
