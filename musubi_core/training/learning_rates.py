"""Puts the scheduled learning rate into an optimizer before each step."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from musubi_core.config import parse_key_values
from musubi_core.errors import ConfigError
from musubi_core.training.optimizers import BuiltOptimizer, class_at
from musubi_core.training.options.schedule import ScheduleOptions
from musubi_core.training.schedules import Multiplier, schedule


class LearningRates:
    """The rate of each parameter group. Only custom classes have a state of their own."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: Multiplier | None,
        custom: LRScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._multiplier = multiplier
        self._custom = custom
        self._full = [group["lr"] for group in optimizer.param_groups] if multiplier else []

    def apply(self, step: int) -> None:
        """Set the rates for the step that follows `step` finished ones."""
        if self._multiplier is not None:
            share = self._multiplier(step)
            for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
                group["lr"] = full * share

    def after_step(self) -> None:
        """A step is finished."""
        if self._custom is not None:
            self._custom.step()

    def values(self) -> dict[str, float]:
        """The rates in force, for the log: lr/unet, and what self-tuning optimizers make of it."""
        found: dict[str, float] = {}
        for number, group in enumerate(self._optimizer.param_groups):
            name = group.get("name", f"group{number}")
            if group["lr"] is not None:
                found[f"lr/{name}"] = float(group["lr"])
            if "d" in group and group["lr"] is not None:  # Prodigy, D-Adaptation
                found[f"lr/d*lr/{name}"] = float(group["d"]) * float(group["lr"])
            if "scheduled_lr" in group:  # schedule-free optimizers warm up by themselves
                found[f"lr/{name}"] = float(group["scheduled_lr"])
        return found

    def state(self) -> dict[str, Any] | None:
        """What a custom class must remember; None for our own schedules."""
        return None if self._custom is None else self._custom.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        if self._custom is not None and state is not None:
            self._custom.load_state_dict(state)


def learning_rates(
    options: ScheduleOptions, built: BuiltOptimizer, *, total: int, learning_rate: float
) -> LearningRates:
    """Raises ConfigError for a schedule that the optimizer or the length of the run does not allow."""
    optimizer = built.optimizer
    if built.own_rate:
        if options.lr_scheduler not in ("constant", "adafactor") or options.lr_scheduler_type:
            raise ConfigError(
                "Adafactor chooses its own learning rate, so lr_scheduler has no effect. Use lr_scheduler "
                "constant, or --optimizer_args relative_step=False to follow the schedule."
            )
        return LearningRates(optimizer, None)
    if options.lr_scheduler_type:
        return LearningRates(optimizer, None, _custom(options, optimizer))
    if options.lr_scheduler == "adafactor":
        raise ConfigError(
            "lr_scheduler adafactor belongs to optimizer_type Adafactor with relative_step=True."
        )
    return LearningRates(optimizer, schedule(options, total=total, learning_rate=learning_rate))


def _custom(options: ScheduleOptions, optimizer: torch.optim.Optimizer) -> LRScheduler:
    name = options.lr_scheduler_type
    path = name if "." in name else f"torch.optim.lr_scheduler.{name}"
    cls = class_at(path, base=LRScheduler, what=f"lr_scheduler_type {name}")
    if issubclass(cls, ReduceLROnPlateau):
        raise ConfigError(
            "lr_scheduler_type ReduceLROnPlateau needs a measured loss at every step; use another."
        )
    arguments = parse_key_values(options.lr_scheduler_args, where="--lr_scheduler_args")
    try:
        scheduler: LRScheduler = cls(optimizer, **arguments)
    except (TypeError, ValueError) as error:
        given = " ".join(options.lr_scheduler_args) or "none"
        raise ConfigError(
            f"lr_scheduler_type {name} does not accept its arguments (lr_scheduler_args: {given}): {error}"
        ) from error
    return scheduler
