"""Learning-rate schedules: the share of the full rate as a pure function of the finished steps.

Legend: s finished optimizer steps, N steps of the run, w warm-up steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from musubi_core.config import parse_key_values
from musubi_core.errors import ConfigError
from musubi_core.training.options.schedule import ScheduleOptions, steps_of

Multiplier: TypeAlias = Callable[[int], float]

POLYNOMIAL_END = 1e-7  # learning rate at which polynomial ends
REX_LEAST = 0.01  # share of the rate at which rex ends, and at which its warm-up begins
TIMESCALE = 10_000  # of inverse_sqrt without warm-up


def schedule(options: ScheduleOptions, *, total: int, learning_rate: float) -> Multiplier:
    """The multiplier for a run of `total` steps. Raises ConfigError for a warm-up longer than the run."""
    warmup = steps_of(options.lr_warmup_steps, total)
    decay = steps_of(options.lr_decay_steps, total)
    if warmup + decay > total:
        raise ConfigError(
            f"lr_warmup_steps ({warmup}) and lr_decay_steps ({decay}) do not fit into {total} steps. "
            'Give smaller numbers, or shares of the run such as "10%".'
        )
    arguments = parse_key_values(options.lr_scheduler_args, where="--lr_scheduler_args")
    if options.lr_scheduler == "rex":
        return _rex(options, arguments, total, warmup)
    after = _after_warmup(options, arguments, total=total, warmup=warmup, decay=decay, rate=learning_rate)
    start = options.lr_scheduler_min_lr_ratio or 0.0 if options.lr_scheduler == "warmup_stable_decay" else 0.0
    return lambda s: start + (1 - start) * s / warmup if s < warmup else after(s)


def _after_warmup(
    options: ScheduleOptions,
    arguments: Mapping[str, Any],
    *,
    total: int,
    warmup: int,
    decay: int,
    rate: float,
) -> Multiplier:
    name, least = options.lr_scheduler, options.lr_scheduler_min_lr_ratio or 0.0
    span = max(1, total - warmup)

    def progress(s: int) -> float:
        return (s - warmup) / span

    if name == "linear":
        return lambda s: max(0.0, (total - s) / span)
    if name == "cosine":
        return lambda s: _half_cosine(min(1.0, progress(s)))
    if name == "cosine_with_restarts":
        cycles = options.lr_scheduler_num_cycles
        return lambda s: 0.0 if progress(s) >= 1 else _half_cosine(cycles * progress(s) % 1.0)
    if name == "cosine_with_min_lr":
        return lambda s: least + (1 - least) * _half_cosine(min(1.0, progress(s)))
    if name == "polynomial":
        return lambda s: _polynomial(min(1.0, progress(s)), options.lr_scheduler_power, rate)
    if name == "inverse_sqrt":
        scale = options.lr_scheduler_timescale or warmup or TIMESCALE
        return lambda s: 1 / math.sqrt((s + scale - warmup) / scale)
    if name == "warmup_stable_decay":
        stable = total - decay
        return lambda s: least + (1 - least) * _half_cosine(min(1.0, max(0, s - stable) / max(1, decay)))
    if name == "piecewise_constant":
        return _piecewise(str(arguments["step_rules"]))
    return lambda s: 1.0


def _half_cosine(part: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def _polynomial(part: float, power: float, rate: float) -> float:
    if rate <= POLYNOMIAL_END:
        return 1.0
    end = POLYNOMIAL_END / rate
    return (1 - end) * (1 - part) ** power + end


def _piecewise(rules: str) -> Multiplier:
    """ "1:10,0.1:20,0.01": 1 before step 10, 0.1 before step 20, then 0.01."""
    *pairs, last = rules.split(",")
    try:
        steps = [(int(step), float(value)) for value, step in (pair.split(":") for pair in pairs)]
        final = float(last)
    except ValueError:
        raise ConfigError(
            f'--lr_scheduler_args step_rules={rules!r}: expected "multiplier:until step, ..., last multiplier'
            '", e.g. "1:10,0.1:20,0.01".'
        ) from None
    return lambda s: next((value for step, value in steps if s < step), final)


def _rex(options: ScheduleOptions, arguments: Mapping[str, Any], total: int, warmup: int) -> Multiplier:
    """REX (arXiv 2107.04197): stays high for long, then falls steeply.

    The warm-up starts at the least rate, and stays there for two steps as in musubi-tuner, before it rises in
    a straight line to the full rate at step w.
    """
    alpha, beta = float(arguments.get("rex_alpha", 0.1)), float(arguments.get("rex_beta", 0.9))
    least = REX_LEAST if options.lr_scheduler_min_lr_ratio is None else options.lr_scheduler_min_lr_ratio
    span = total - warmup

    def multiplier(s: int) -> float:
        if s < warmup:
            return least + (1 - least) * max(0, s - 1) / max(1, warmup - 1)
        left = (span - (s - warmup)) / span if span > 0 else 0.0
        if left <= 0:
            return least
        return least + (1 - least) * left / (alpha + beta * left)

    return multiplier
