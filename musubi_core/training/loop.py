"""The loop: steps, what is measured and saved between them, and leaving without losing work."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from musubi_core.data.ahead import ReadAhead
from musubi_core.data.order import PlannedSample
from musubi_core.device.memory import memory_in_use
from musubi_core.errors import MusubiError, TrainingError
from musubi_core.events import Listener, Metrics, Note, Progress, ShouldStop, Warned
from musubi_core.networks.norms import scale_weight_norms
from musubi_core.networks.power_ema import SIGMA_KEY
from musubi_core.networks.saving import lora_tensors
from musubi_core.training.inputs import Prepared, Recipe, prepare
from musubi_core.training.loras import Loras, named
from musubi_core.training.metrics import Log
from musubi_core.training.optimizers import evaluating
from musubi_core.training.options.validation import ValidationOptions
from musubi_core.training.outputs import LORA, STATE, Outputs, average_name, epoch_name, step_name
from musubi_core.training.plans import StepPlan, StepPlans
from musubi_core.training.requests import Requests
from musubi_core.training.running_averages import RunningAverages
from musubi_core.training.samples import Samples
from musubi_core.training.state import RunState
from musubi_core.training.step import Stepper, StepResult
from musubi_core.training.validation import validation_losses

SHOWN = 5  # files named in a message
MEMORY_EVERY = 10  # steps; asking the system costs as much as everything else that is logged


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """loras: the newest LoRA file, or files when there are several networks; empty when nothing was trained.
    stopped: ended before the last step."""

    loras: tuple[Path, ...] = ()
    state: Path | None = None
    metrics: Path | None = None
    step: int = 0
    total: int = 0
    seed: int = 0
    loss: float | None = None  # loss/average at the end
    stopped: bool = False

    @property
    def lora(self) -> Path | None:
        """The newest LoRA file, of several the one for the lowest noise."""
        return self.loras[0] if self.loras else None


@dataclass(slots=True, kw_only=True)
class Position:
    """What changes from step to step, besides weights and optimizer. step: finished steps."""

    step: int = 0
    losses: deque[float]
    refused: int = 0  # steps in a row without an update
    saved_at: int = 0
    loras: tuple[Path, ...] = ()
    state: Path | None = None


@dataclass(slots=True, kw_only=True)
class Loop:
    """A run that is ready to go. The parts are given; `position` and the parts change in place."""

    stepper: Stepper
    loras: Loras
    averages: RunningAverages
    plans: StepPlans
    recipe: Recipe
    held_out: tuple[PlannedSample, ...]
    validation: ValidationOptions
    samples: Samples
    outputs: Outputs
    logs: list[Log]
    position: Position
    emit: Listener
    should_stop: ShouldStop
    requests: Requests
    workers: int
    most_refused: int
    norm_limit: float | None
    save_dtype: torch.dtype
    key_format: str
    fresh: RunState  # before the first step; some of it stays the same
    metadata: Callable[[str, int, int], dict[str, str]]  # (LoRA, step, epoch from 1) -> of its file
    incoming: Iterator[tuple[StepPlan, Prepared | MusubiError]] = field(default_factory=lambda: iter(()))

    def run(self) -> bool:
        """Train to the last step. Returns False when it was stopped before. Saves on any way out."""
        here, total = self.stepper.processes, self.plans.total
        steps = self.plans.from_step(self.position.step)
        pin = here.device.type == "cuda"
        read = partial(read_step, self.recipe, pin)
        ahead = max(2, self.workers)
        made: StepPlan | None = None  # the last step of this call
        try:
            reader: ReadAhead[StepPlan, Prepared] = ReadAhead(steps, read, workers=self.workers, limit=ahead)
            with reader:
                self.incoming = iter(reader)
                while self.position.step < total:
                    if here.any(self.should_stop()):
                        self.save_progress()
                        return False
                    if self.requests.take("save"):
                        self.save_now()
                    if self.samples_due(made):
                        self.draw()
                    made = self.plans.at(self.position.step)
                    self.one_step(made)
            self.save_end()
            if self.samples_due(made):
                self.draw()
        except BaseException:
            self.rescue()
            raise
        return True

    def result(self, *, stopped: bool) -> TrainResult:
        """What the run came to."""
        position, options = self.position, self.outputs.options
        return TrainResult(
            loras=position.loras,
            state=position.state,
            metrics=options.metrics_file,
            step=position.step,
            total=self.plans.total,
            seed=self.fresh.seed,
            loss=sum(position.losses) / len(position.losses) if position.losses else None,
            stopped=stopped,
        )

    def one_step(self, plan: StepPlan) -> None:
        """Train one step, count it, then measure, log and save what is due."""
        started = time.perf_counter()
        result = self.stepper.step(
            self.position.step, self.next_batch, batches=len(plan.mine), samples=plan.samples
        )
        values = self.count(result)
        if result.updated and self.norm_limit:
            norms = scale_weight_norms(list(self.loras.networks.values()), self.norm_limit)
            values |= {
                "max_norm/keys_scaled": norms.scaled,
                "max_norm/average_key_norm": norms.mean,
                "max_norm/max_key_norm": norms.largest,
            }
        if result.updated and self.averages.widths:
            self.averages.update(self.position.step)
        self.stepper.updating = False
        values["time/step"] = time.perf_counter() - started
        if self.validation_due(plan):
            values |= self.measure()
        self.log(values)
        if not result.updated:
            self.judge(result)
        self.save_due(plan)

    def next_batch(self) -> Prepared:
        """The next batch of this process, from the reader threads."""
        _, prepared = next(self.incoming)
        if isinstance(prepared, MusubiError):
            raise prepared
        return prepared

    def count(self, result: StepResult) -> dict[str, float]:
        """The step is done. Returns its numbers."""
        position = self.position
        position.step += 1
        if result.updated:
            position.losses.append(result.loss)
            position.refused = 0
        elif not result.overflow:
            position.refused += 1
        values = {"loss/current": result.loss}
        if position.losses:
            values["loss/average"] = sum(position.losses) / len(position.losses)
        values |= self.stepper.rates.values()
        values["grad/norm"] = result.norm
        if position.step % MEMORY_EVERY == 1:
            use = memory_in_use(self.stepper.processes.device)
            if use is not None:
                values["memory/peak_gb"] = use.peak / 1e9
        return values

    def judge(self, result: StepResult) -> None:
        """Tell of a step that made no update. Raises TrainingError after too many of them in a row."""
        if result.overflow:
            return
        where = f"step {self.position.step}"
        what = "loss" if not math.isfinite(result.loss) else "gradient"
        files = ", ".join(result.faulty[:SHOWN]) + (", ..." if len(result.faulty) > SHOWN else "")
        text = f"The {what} is not a finite number at {where}; files: {files}. No update was made."
        if self.position.refused < self.most_refused:
            self.emit(Warned(text=text))
            return
        good = self.position.step - self.position.refused
        state = f" in {self.position.state}" if self.position.state else ""
        raise TrainingError(
            f"{text} This was the case {self.position.refused} times in a row, so training stops; the "
            f"weights are those of step {good}. The last good state is step {self.position.saved_at}{state}. "
            "Check these files, lower learning_rate, or use mixed_precision bf16 or no."
        )

    def validation_due(self, plan: StepPlan) -> bool:
        if not self.held_out:
            return False
        step, epoch, options = self.position.step, plan.epoch + 1, self.validation
        by_step = options.validate_every_n_steps and step % options.validate_every_n_steps == 0
        by_epoch = options.every_epochs and plan.ends_epoch and epoch % options.every_epochs == 0
        return bool(by_step or by_epoch or step == self.plans.total)

    def measure(self) -> dict[str, float]:
        """The validation loss now."""
        stepper = self.stepper
        self.loras.train(False)
        try:
            with evaluating(stepper.optimizer, stepper.gradients.parameters):
                return validation_losses(
                    stepper.experts, self.recipe, self.held_out, self.validation, stepper.processes
                )
        finally:
            self.loras.train()

    def samples_due(self, made: StepPlan | None) -> bool:
        """Whether to draw the prompts now: after this step, at the very start, or when asked."""
        options, step = self.samples.options, self.position.step
        if self.stepper.processes.any(self.requests.take("sample")):
            if not self.samples:
                self.emit(Warned(text="There is nothing to draw: this run has no --sample_prompts."))
            return bool(self.samples)
        if made is None:
            return options.sample_at_first and step == 0
        return options.due(step=step, epoch=made.epoch + 1, ends_epoch=made.ends_epoch)

    def draw(self) -> None:
        """Draw the prompts with the LoRA as it is. Nothing of the training changes."""
        stepper = self.stepper
        self.loras.train(False)
        try:
            with evaluating(stepper.optimizer, stepper.gradients.parameters), stepper.compiled.set_aside():
                self.samples.draw(self.position.step)
        finally:
            self.loras.train()

    def log(self, values: dict[str, float]) -> None:
        """One line per step, and the same for the listener."""
        step = self.position.step
        for log in self.logs:
            log(step, values)
        self.emit(Metrics(step=step, values=values))
        average = values.get("loss/average")
        text = "" if average is None else f"loss {average:.4f}"
        self.emit(Progress(stage="train", done=step, total=self.plans.total, text=text))

    def save_due(self, plan: StepPlan) -> None:
        """Save as save_every_n_* say. The last step is left to the final files."""
        step, options, saved = self.position.step, self.outputs.options, self.outputs.saved
        if step >= self.plans.total or not self.stepper.processes.main:
            return
        if options.save_every_n_steps and step % options.save_every_n_steps == 0:
            self.save(step_name(options.output_name, step), saved.steps, saved.step_states)
        epoch = plan.epoch + 1
        if options.save_every_n_epochs and plan.ends_epoch and epoch % options.save_every_n_epochs == 0:
            self.save(epoch_name(options.output_name, epoch), saved.epochs, saved.epoch_states)

    def save(self, base: str, names: list[str], state_names: list[str]) -> None:
        """A LoRA and a state under `base`, then room for the next."""
        kept = self.outputs.options.save_state
        for lora in self.loras.names:
            _remember(names, named(base, lora) + LORA)
            for width in self.averages.widths:
                _remember(names, average_name(named(base, lora), width) + LORA)
        _remember(state_names if kept else self.outputs.saved.spare_states, base + STATE)
        self.write_lora(base)
        self.write_state(base, kept=kept)
        self.outputs.make_room()

    def save_progress(self) -> None:
        """A LoRA and a state of this step, unless just saved: for a run that ends before its last step."""
        if not self.stepper.processes.main or self.position.step == self.position.saved_at:
            return
        base = step_name(self.outputs.options.output_name, self.position.step)
        _remember(self.outputs.saved.spare_states, base + STATE)
        self.write_lora(base)
        self.write_state(base, kept=self.outputs.options.save_state)

    def save_now(self) -> None:
        """A LoRA and a state because someone asked."""
        step = self.position.step
        if step == self.position.saved_at:
            self.emit(Note(text=f"Nothing to save now: no step was made since step {step}, which is saved."))
        self.save_progress()

    def save_end(self) -> None:
        """The final LoRA, and its state if asked."""
        if not self.stepper.processes.main:
            return
        name = self.outputs.options.output_name
        self.write_lora(name)
        if self.outputs.options.save_state or self.outputs.options.save_state_on_train_end:
            self.write_state(name, kept=True)

    def rescue(self) -> None:
        """Something went wrong: keep what was trained, as far as it is whole. Never hides the first error."""
        if self.stepper.updating:
            self.emit(Warned(text="The run ended in the middle of an update, so this step was not saved."))
            return
        try:
            self.save_progress()
        except (MusubiError, OSError) as error:
            self.emit(Warned(text=f"The run ended and its last steps could not be saved: {error}"))

    def write_lora(self, base: str) -> None:
        step = self.position.step
        epoch = self.plans.at(max(0, step - 1)).epoch + 1
        with evaluating(self.stepper.optimizer, self.stepper.gradients.parameters):
            tensors = {
                name: lora_tensors(network, self.save_dtype, self.key_format)
                for name, network in self.loras.networks.items()
            }
        self.position.loras = tuple(
            self.outputs.write_lora(named(base, name), one, self.metadata(name, step, epoch))
            for name, one in tensors.items()
        )
        for width in self.averages.widths:
            self.write_average(base, width, step, epoch)

    def write_average(self, base: str, width: float, step: int, epoch: int) -> None:
        """The running average of one width, in float32: later sums of them magnify rounding."""
        with self.averages.in_place(width):
            for name, network in self.loras.networks.items():
                tensors = lora_tensors(network, torch.float32, self.key_format)
                metadata = {**self.metadata(name, step, epoch), SIGMA_KEY: f"{width:g}"}
                self.outputs.write_lora(average_name(named(base, name), width), tensors, metadata)

    def write_state(self, base: str, *, kept: bool) -> None:
        """Everything that decides how the run goes on from here."""
        position, stepper = self.position, self.stepper
        epoch, place = divmod(position.step, self.plans.steps_per_epoch)
        scale = stepper.loss_scale
        state = replace(
            self.fresh,
            step=position.step,
            epoch=epoch,
            position=place * self.plans.together,
            kept=kept,
            losses=tuple(position.losses),
            refused=position.refused,
            loss_scale=None if scale is None else (scale.factor, scale.streak),
            saved=self.outputs.saved.record(),
            optimizer=stepper.optimizer.state_dict(),
            schedule=stepper.rates.state(),
            averages=self.averages.state() if self.averages.widths else None,
            network=self.loras.state_dict(),
        )
        position.state = self.outputs.write_state(base, state)
        position.saved_at = position.step


def read_step(recipe: Recipe, pin: bool, plan: StepPlan) -> Generator[Prepared, None, None]:
    """The batches of one step, one after the other. Runs in a reader thread."""
    batches = (prepare(recipe, micro) for micro in plan.mine)
    for prepared in batches if len(recipe.intervals) == 1 else side_by_side(batches, plan.step):
        yield prepared.pinned() if pin else prepared


def side_by_side(batches: Iterable[Prepared], step: int) -> list[Prepared]:
    """The batches of a step in the order of their sides, up and down by turns: few changes of the network."""
    return sorted(batches, key=lambda one: one.side, reverse=bool(step % 2))


def _remember(names: list[str], name: str) -> None:
    """Put `name` at the end, once: a resumed run writes some files again."""
    if name in names:
        names.remove(name)
    names.append(name)
