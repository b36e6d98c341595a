"""One optimizer step: forward and backward for each batch, one exchange, one check, one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from musubi_core.data.order import PlannedSample
from musubi_core.models.compiling import Compiled
from musubi_core.models.spec import ArchSpec
from musubi_core.offload.experts import Experts
from musubi_core.training.gradients import FlatGradients
from musubi_core.training.inputs import Prepared
from musubi_core.training.learning_rates import LearningRates
from musubi_core.training.loss import sample_losses
from musubi_core.training.processes import Processes, seed_device
from musubi_core.training.swapping import Saving, nowhere

Seen: TypeAlias = (
    "tuple[tuple[PlannedSample, ...], tuple[float, ...], Tensor]"  # samples, levels, losses (B,)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step came to. norm: of the gradient before clipping. updated: False when nothing changed."""

    loss: float
    norm: float
    updated: bool
    overflow: bool = False  # fp16 only: the loss was fine, the scaled gradient too large
    faulty: tuple[str, ...] = ()  # "file (t = 0.993)" when not updated


@dataclass(slots=True, kw_only=True)
class LossScale:
    """The factor that keeps small gradients above the smallest number of fp16. Halves when they overflow,
    doubles after `patience` good steps."""

    factor: float = 65536.0
    streak: int = 0
    patience: int = 2000

    def shrink(self) -> None:
        self.factor, self.streak = self.factor / 2, 0

    def grow(self) -> None:
        self.streak += 1
        if self.streak == self.patience:
            self.factor, self.streak = self.factor * 2, 0


@dataclass(slots=True, kw_only=True)
class Stepper:
    """The parts that a step needs. They change in place. parts: of `gradients`, one for each expert."""

    spec: ArchSpec
    arch_options: Any
    experts: Experts
    optimizer: torch.optim.Optimizer
    rates: LearningRates
    gradients: FlatGradients
    parts: tuple[int, ...]
    processes: Processes
    loss_scale: LossScale | None  # fp16 only
    max_grad_norm: float
    compiled: Compiled
    saving: Saving = nowhere
    updating: bool = False  # True while weights are being changed: they are neither old nor new

    def step(self, number: int, read: Callable[[], Prepared], *, batches: int, samples: int) -> StepResult:
        """Train on the next `batches` batches of this process; every sample of the step weighs 1 / samples.

        number: finished steps so far. A loss or gradient that is not finite leaves the weights as they are.
        Else `updating` stays True until the caller has counted the step.
        """
        self.gradients.clear()
        seen: list[Seen] = []
        for _ in range(batches):
            prepared = read()
            losses = self.compiled.attempt(
                partial(self.backward, prepared, samples), held=self.gradients.buffer
            )
            seen.append((prepared.samples, prepared.levels, losses))
        self.processes.add_up(self.gradients.buffer)
        if self.loss_scale is not None:
            self.gradients.scale(1 / self.loss_scale.factor)
        loss, norm = self.gradients.loss_and_norm()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._refused(loss, norm, seen)
        self.gradients.clip(norm, self.max_grad_norm)
        self.gradients.leave_unused()
        self.rates.apply(number)
        self.updating = True
        self.optimizer.step()
        self.rates.after_step()
        if self.loss_scale is not None:
            self.loss_scale.grow()
        return StepResult(loss=loss, norm=norm, updated=True)

    def backward(self, prepared: Prepared, samples: int) -> Tensor:
        """Add the gradient of one batch. Returns the loss of each of its samples, (B,)."""
        seed_device(self.processes.device, prepared.dropout_seed)
        here = prepared.on(self.processes.device)
        model = self.experts.at_work(prepared.side)
        with self.processes.autocast(), self.saving(model):
            prediction = self.spec.predict(model, here.noisy, here.t, here.conditioning, self.arch_options)
        losses = sample_losses(prediction, here.target, here.weights)
        loss = losses.sum() / samples
        (loss if self.loss_scale is None else loss * self.loss_scale.factor).backward()
        self.gradients.loss.add_(loss.detach())
        self.gradients.count(self.parts[prepared.side])
        return losses.detach()

    def _refused(self, loss: float, norm: float, seen: Sequence[Seen]) -> StepResult:
        """Nothing is updated. Blame the samples whose own loss is not finite, or all when only together."""
        overflow = self.loss_scale is not None and math.isfinite(loss) and self.loss_scale.factor > 1
        if self.loss_scale is not None:
            self.loss_scale.shrink()
        every = [
            (sample.item.source, level, value)
            for samples, levels, losses in seen
            for sample, level, value in zip(samples, levels, losses.tolist(), strict=True)
        ]
        every = self.processes.everyone(every)
        blamed = [one for one in every if not math.isfinite(one[2])] or every
        faulty = tuple(f"{source} (t = {level:.4f})" for source, level, _ in blamed)
        return StepResult(loss=loss, norm=norm, updated=False, overflow=overflow, faulty=faulty)
