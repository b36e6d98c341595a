"""The first half of a run: everything that can be found wrong before the model is loaded."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import musubi_core
from musubi_core.data.dataset import read_datasets
from musubi_core.data.manifest import LATENTS, REBUILD
from musubi_core.data.training_set import TrainingSet, open_training_set, split_validation
from musubi_core.device.attention import check_attention
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Listener, Note, Warned
from musubi_core.files.replace import check_writable
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec, Expert
from musubi_core.training.config import TrainConfig
from musubi_core.training.loras import start_file
from musubi_core.training.optimizers import optimizer_class
from musubi_core.training.outputs import find_state
from musubi_core.training.plans import StepPlans
from musubi_core.training.processes import Processes
from musubi_core.training.resume import check_same_run, identities, trajectory
from musubi_core.training.sides import needed_experts
from musubi_core.training.state import RunState, read_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run that may begin. state: to go on from, None for a fresh start. fresh: its state before step 1.

    experts: the networks that have something to train. lora_names: of all, also of those that have not.
    """

    config: TrainConfig  # with the architecture's options filled in
    spec: ArchSpec
    experts: tuple[Expert, ...]
    lora_names: tuple[str, ...]
    here: Processes
    emit: Listener
    training: TrainingSet
    held_out: TrainingSet
    plans: StepPlans
    fresh: RunState
    state: RunState | None


def open_run(config: TrainConfig, spec: ArchSpec | None, here: Processes, emit: Listener) -> Opened:
    """Check options, files and data against each other. Raises ConfigError, BadFileError."""
    name = config.model.architecture
    spec = spec or (architecture(name) if name else architecture_of(config.model.dit))
    options = spec.settle(config.model.dit, config.arch_options or spec.train_options())
    config = replace(config, arch_options=options)
    _check_with(config, spec, here)
    for line in config.timesteps.without_effect():
        emit(Warned(text=line))
    shape = spec.latent_with(options)
    whole = open_training_set(read_datasets(config.data.dataset_config), shape, spec.required_tensors, emit)
    check_items(whole, spec, options)
    every = spec.experts(config.model.dit, options)
    experts = _experts(config, every, whole, emit)
    training, held_out = split_validation(
        whole, config.validation.validation_split, config.validation.validation_seed
    )
    path = here.from_main(find_state(config.saving, emit) if here.main else None)
    state = None if path is None else read_state(path)
    fresh = here.from_main(_fresh_state(config, spec, every, here, training))
    if state is not None:
        check_same_run(path, state, fresh, seed=config.loop.seed)
        fresh = replace(fresh, seed=state.seed, session_id=state.session_id, started_at=state.started_at)
    plans = _plans(config, training, here, fresh)
    if state is not None:
        _check_progress(config, path, state, plans.total, emit)
    elif config.loop.seed is None:
        emit(Note(text=f"The seed of this run is {fresh.seed}."))
    return Opened(
        config=config,
        spec=spec,
        experts=experts,
        lora_names=tuple(expert.lora for expert in every),
        here=here,
        emit=emit,
        training=training,
        held_out=held_out,
        plans=plans,
        fresh=replace(fresh, total=plans.total),
        state=state,
    )


def check_items(whole: TrainingSet, spec: ArchSpec, options: Any) -> None:
    """Raises BadFileError naming a latent cache that lacks something these options need."""
    for shapes, item in {item.shapes: item for item in reversed(whole.items)}.items():
        if reason := spec.unfit({name: shape for name, shape, _ in shapes}, options):
            raise BadFileError(f"{item.latents} {reason} Run {REBUILD[LATENTS]} again.")


def _check_with(config: TrainConfig, spec: ArchSpec, here: Processes) -> None:
    """The checks that need the architecture, the device or the disk."""
    check = getattr(config.arch_options, "check", None)
    if check is not None:
        check()
    config.network.check(network_modules=spec.network_modules)
    optimizer_class(config.optimizer.optimizer_type)
    check_attention(config.model.attention, training=True, device=here.device)
    if here.main:
        check_writable(config.saving.output_dir)


def _experts(
    config: TrainConfig, every: tuple[Expert, ...], whole: TrainingSet, emit: Listener
) -> tuple[Expert, ...]:
    """Those of `every` that the run needs; tells of the others."""
    sizes = {
        (shape[-2], shape[-1]) for item in whole.items for name, shape, _ in item.shapes if name == "latents"
    }
    needed = needed_experts(config.timesteps, every, sizes)
    for expert in every:
        if expert not in needed:
            emit(
                Note(
                    text=f"{expert.path.name} is not loaded: it is for timesteps {1000 * expert.t_min:g} to "
                    f"{1000 * expert.t_max:g}, and this run draws none of them."
                )
            )
    for expert in needed:
        start_file(config.network.network_weights, expert.lora, [one.lora for one in every])
    return needed


def _fresh_state(
    config: TrainConfig, spec: ArchSpec, experts: Sequence[Expert], here: Processes, training: TrainingSet
) -> RunState:
    """The state before the first step; what is drawn at random here is stored with the run."""
    seed = config.loop.seed
    return RunState(
        output_name=config.saving.output_name,
        step=0,
        epoch=0,
        position=0,
        seed=secrets.randbits(32) if seed is None else seed,
        session_id=secrets.randbits(32),
        started_at=time.time(),
        together=config.loop.gradient_accumulation_steps * here.count,
        total=0,
        kept=False,
        options=trajectory(config, precision=here.precision, harmless=spec.harmless),
        identities=identities(config, experts, training),
        versions={
            "musubi_core": musubi_core.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _plans(config: TrainConfig, training: TrainingSet, here: Processes, fresh: RunState) -> StepPlans:
    loop = config.loop
    return StepPlans(
        training,
        seed=fresh.seed,
        together=fresh.together,
        total=loop.max_train_steps,
        epochs=loop.max_train_epochs,
        index=here.index,
        count=here.count,
    )


def _check_progress(config: TrainConfig, path: Path, state: RunState, total: int, emit: Listener) -> None:
    if state.step > total:
        raise ConfigError(
            f"{path} is at step {state.step}, beyond the {total} steps of this run. Set max_train_steps (or "
            f"max_train_epochs) to more than that, or resume from an older state."
        )
    emit(Note(text=f"Going on from step {state.step} of {total}, with {path}."))
    if state.total != total and config.schedule.follows_total:
        emit(
            Warned(
                text=f"The run had {state.total} steps and now has {total}, so lr_scheduler "
                f"{config.schedule.lr_scheduler} continues on another curve."
            )
        )
