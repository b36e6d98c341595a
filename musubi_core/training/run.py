"""`train`: from a TrainConfig to a LoRA. Only this file, `opening` and `loading` see all options of a run."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch

from musubi_core.config import values_of
from musubi_core.data.batches import ItemMemory
from musubi_core.data.training_set import TrainingSet
from musubi_core.device.memory import empty_cache
from musubi_core.device.precision import autocast_dtype, dtype_of
from musubi_core.errors import Stopped
from musubi_core.events import Listener, Note, ShouldStop, ignore, never
from musubi_core.generation.networks import Networks
from musubi_core.models.compile_limits import compile_limits
from musubi_core.models.compiling import backend_switches, compile_network
from musubi_core.models.spec import ArchSpec
from musubi_core.offload.experts import Experts
from musubi_core.training.config import TrainConfig
from musubi_core.training.gradients import FlatGradients
from musubi_core.training.inputs import Recipe
from musubi_core.training.learning_rates import learning_rates
from musubi_core.training.loading import attach_loras, load_experts, swap_blocks
from musubi_core.training.loop import Loop, Position, TrainResult
from musubi_core.training.loras import Loras
from musubi_core.training.metadata import RunFacts, lora_metadata
from musubi_core.training.metrics import Log, MetricsFile, open_trackers
from musubi_core.training.opening import Opened, open_run
from musubi_core.training.optimizers import build_optimizer
from musubi_core.training.outputs import Outputs, Saved
from musubi_core.training.packing import pack
from musubi_core.training.plan.first_pass import check_fit, explained, wanted
from musubi_core.training.plan.planning import plan_run
from musubi_core.training.processes import join_processes, own_random_state
from musubi_core.training.requests import Requests
from musubi_core.training.running_averages import RunningAverages
from musubi_core.training.samples import FOLDER, Prompts, Samples, prepare_prompts
from musubi_core.training.show_timesteps import show_timesteps
from musubi_core.training.sides import intervals_of
from musubi_core.training.state import restore_optimizer
from musubi_core.training.step import LossScale, Stepper
from musubi_core.training.swapping import saving
from musubi_core.training.validation import held_out_samples

KEPT_BYTES = 256 << 20  # caches of a small dataset are read once
LIGHT_BYTES = 256 << 10  # a batch of kept items up to this size is prepared faster than a thread is woken
NEVER_LOGGED = {"wandb_api_key", "dit", "vae", "dataset_config", "output_dir", "logging_dir", "resume"}


def train(
    config: TrainConfig,
    emit: Listener = ignore,
    should_stop: ShouldStop = never,
    spec: ArchSpec | None = None,
    requests: Requests | None = None,
) -> TrainResult:
    """Train a LoRA. When `should_stop()` becomes true, the step is finished, LoRA and state are saved.

    spec: the architecture, when it is none of the registered ones. requests: how another thread asks for
    something while this one trains. Raises MusubiError with a message for the user; what was trained until
    then is saved first.
    """
    config.check()
    if config.timesteps.show_timesteps:
        picture = config.saving.output_dir / f"{config.saving.output_name}-timesteps.png"
        show_timesteps(config.timesteps, picture, emit)
        return TrainResult()
    if config.plan.plan:
        plan_run(config, spec, emit)
        return TrainResult()
    loop: Loop | None = None
    requests = requests or Requests()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        here = stack.enter_context(join_processes(config.loop.mixed_precision, config.loop.ddp_timeout))
        stack.enter_context(own_random_state(here.device))
        stack.enter_context(backend_switches(config.compile))
        opened = open_run(config, spec, here, emit if here.main else ignore)
        stack.callback(empty_cache, here.device)
        kinds = opened.plans.kinds + len({item.shapes for item in opened.held_out.items})
        stack.enter_context(compile_limits(config.compile, kinds, opened.emit))
        stack.enter_context(explained(opened, lambda: loop.position.step if loop is not None else 0))
        prompts = prepare_prompts(opened, should_stop)
        try:
            experts = load_experts(opened, should_stop)
        except Stopped:
            return not_begun(opened)
        for swap in swap_blocks(opened, experts):
            stack.callback(swap.release)
        loras = attach_loras(opened, experts)
        stack.callback(loras.remove)
        logs = open_logs(opened, stack)
        samples = make_samples(opened, prompts, experts, should_stop)
        loop = make_loop(opened, experts, loras, samples, logs, should_stop=should_stop, requests=requests)
        if wanted(config.plan.check_fit, here.device):
            check_fit(opened, loop.stepper)
        finished = loop.run()
        return loop.result(stopped=not finished)


def not_begun(opened: Opened) -> TrainResult:
    """What comes of a run that was stopped while its networks were loaded: nothing."""
    opened.emit(Note(text="Stopped while the model was loaded. Nothing was trained."))
    step = opened.state.step if opened.state else 0
    return TrainResult(step=step, total=opened.plans.total, seed=opened.fresh.seed, stopped=True)


def open_logs(opened: Opened, stack: contextlib.ExitStack) -> list[Log]:
    """The metrics file and the loggers that were asked for, closed with the stack."""
    config = opened.config
    if not opened.here.main:
        return []
    finished = opened.state.step if opened.state else 0
    stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(opened.fresh.started_at))
    shown: dict[str, Any] = {}
    if config.logging.log_config:
        shown = {
            name: str(value)
            for name, value in values_of(config).items()
            if name not in NEVER_LOGGED and not isinstance(value, Path)
        }
    logs: list[Log] = []
    for tracker in open_trackers(config.logging, stamp=stamp, config=shown, finished=finished):
        stack.callback(tracker.close)
        logs.append(tracker.log)
    file = MetricsFile(config.saving.metrics_file, finished=finished)
    stack.callback(file.close)
    return [file.write, *logs]


def make_loop(
    opened: Opened,
    experts: Experts,
    loras: Loras,
    samples: Samples,
    logs: list[Log],
    *,
    should_stop: ShouldStop,
    requests: Requests,
) -> Loop:
    """Optimizer and loop, as the state left them."""
    config, state = opened.config, opened.state
    stepper, label = make_stepper(opened, experts, loras)
    position = Position(losses=deque(maxlen=opened.plans.steps_per_epoch))
    saved = Saved()
    if state is not None:
        position.step = position.saved_at = state.step
        position.losses.extend(state.losses)
        position.refused = state.refused
        saved = Saved(**state.saved)
    averages = RunningAverages(config.saving.ema_sigma_rel, stepper.gradients.parameters)
    if state is not None:
        averages.restore(state.averages)
    return Loop(
        stepper=stepper,
        loras=loras,
        averages=averages,
        plans=opened.plans,
        recipe=Recipe(
            spec=opened.spec,
            arch_options=config.arch_options,
            timesteps=config.timesteps,
            seed=opened.fresh.seed,
            epoch_samples=opened.training.samples_per_epoch,
            epoch_batches=opened.plans.batches_per_epoch,
            intervals=intervals_of(opened.experts),
            load=ItemMemory(KEPT_BYTES),
        ),
        held_out=held_out_samples(opened.held_out, config.validation.max_validation_items),
        validation=config.validation,
        samples=samples,
        outputs=Outputs(
            options=config.saving,
            emit=opened.emit,
            saved=saved,
            loras=len(loras.names) * (1 + len(averages.widths)),
        ),
        logs=logs,
        position=position,
        emit=opened.emit,
        should_stop=should_stop,
        requests=requests,
        workers=reader_threads(config.data.max_data_loader_n_workers, opened.training),
        most_refused=config.loop.max_nonfinite_steps,
        norm_limit=config.network.scale_weight_norms,
        save_dtype=dtype_of(config.saving.save_precision or "fp32"),
        key_format=config.network.lora_key_format,
        fresh=opened.fresh,
        metadata=partial(lora_metadata, config, opened.spec, facts_of(opened, label)),
    )


def make_samples(opened: Opened, prompts: Prompts, experts: Experts, should_stop: ShouldStop) -> Samples:
    """What draws the prompts with the networks of the run. Processes share the prompts out."""
    config, here = opened.config, opened.here
    return Samples(
        options=config.samples,
        prompts=prompts,
        networks=Networks(
            spec=opened.spec,
            options=config.arch_options,
            experts=opened.experts,
            at_work=experts.at_work,
            device=here.device,
            autocast=autocast_dtype(here.precision),
        ),
        folder=config.saving.output_dir / FOLDER,
        name=config.saving.output_name,
        emit=opened.emit,
        should_stop=should_stop,
        share=(here.index, here.count),
    )


def make_stepper(opened: Opened, experts: Experts, loras: Loras) -> tuple[Stepper, str]:
    """The parts of a step, and the optimizer's name for metadata."""
    config, state, here = opened.config, opened.state, opened.here
    rate = config.optimizer.learning_rate
    built = build_optimizer(config.optimizer, loras.parameter_groups(rate))
    optimizer = built.optimizer
    rates = learning_rates(config.schedule, built, total=opened.plans.total, learning_rate=rate)
    loss_scale = LossScale() if here.precision == "fp16" else None
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free ones start in neither mode
    pack([optimizer.state_dict(), rates.state()], {}, built.label)  # refuse now what a save would refuse
    if state is not None:
        restore_optimizer(optimizer, state.optimizer)
        rates.restore(state.schedule)
        if loss_scale is not None and state.loss_scale is not None:
            loss_scale.factor, loss_scale.streak = state.loss_scale
    blocks = [block for model in experts.models for block in opened.spec.blocks(model)]
    stepper = Stepper(
        spec=opened.spec,
        arch_options=config.arch_options,
        experts=experts,
        optimizer=optimizer,
        rates=rates,
        gradients=FlatGradients(*loras.parts()),
        parts=loras.sides,
        processes=here,
        loss_scale=loss_scale,
        max_grad_norm=config.optimizer.max_grad_norm,
        compiled=compile_network(config.compile, experts.models, blocks, opened.emit),
        saving=saving(config.swap, here.device),
    )
    return stepper, built.label


def facts_of(opened: Opened, optimizer: str) -> RunFacts:
    """What the metadata says of this run."""
    plans, fresh = opened.plans, opened.fresh
    return RunFacts(
        session_id=fresh.session_id,
        started_at=fresh.started_at,
        seed=fresh.seed,
        precision=opened.here.precision,
        optimizer=optimizer,
        total=plans.total,
        epochs=-(-plans.total // plans.steps_per_epoch),
        items=opened.training.samples_per_epoch,
        batches_per_epoch=plans.batches_per_epoch,
        datasets=opened.training.summary(),
        experts=opened.experts,
    )


def reader_threads(asked: int, training: TrainingSet) -> int:
    """How many threads read ahead: none for a small dataset of small items, which stays in memory."""
    total = largest = 0
    for dataset in training.datasets:
        sizes = [item.latents.stat().st_size + item.text.stat().st_size for item in dataset.items]
        total += sum(sizes)
        largest = max(largest, dataset.config.batch_size * max(sizes, default=0))
    if total <= KEPT_BYTES and largest <= LIGHT_BYTES:
        return 0
    return min(asked, os.cpu_count() or 1)
