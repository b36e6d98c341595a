"""The plan of a run: what it needs and how long it is, before any weight is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from musubi_core.data.batches import load_batch
from musubi_core.data.order import BatchPlan
from musubi_core.device.memory import card_memory
from musubi_core.device.precision import dtype_of
from musubi_core.errors import ConfigError
from musubi_core.events import Listener, Note, ignore
from musubi_core.models.spec import ArchSpec
from musubi_core.training.config import TrainConfig
from musubi_core.training.inputs import Prepared, Recipe, training_pair
from musubi_core.training.opening import Opened, open_run
from musubi_core.training.plan.disk import disk_use
from musubi_core.training.plan.largest import AS_IS, Shrink, describe, largest_batch, latent_size, shrunk
from musubi_core.training.plan.measures import Size, Suggestion, Trial, cheapest
from musubi_core.training.plan.memory import STATES, Memory, memory_of, numbers
from musubi_core.training.plan.rehearsal import Rehearsal, rehearse
from musubi_core.training.plan.table import plan_table
from musubi_core.training.processes import join_processes, own_random_state
from musubi_core.training.sides import intervals_of

KEPT_BYTES = 256 << 20  # of cached items, at most; as in a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run needs. disk: bytes by what they are for. largest: the item that decides.

    limit: bytes that the run may take of the device, None when nobody said and the device does not tell.
    suggestions: the cheapest ways to fit, each of them enough (or, when none is, the one that needs least);
    empty when the run fits.
    """

    architecture: str
    device: str
    memory: Memory
    disk: Mapping[str, int]
    steps: int
    steps_per_epoch: int
    items: int
    batch_size: int
    largest: str
    limit: int | None = None
    suggestions: tuple[Suggestion, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the run, as it is set up now, keeps to the limit."""
        return self.limit is None or self.memory.needed <= self.limit

    def text(self) -> str:
        """The plan as a table for people."""
        return plan_table(self)


def plan_run(config: TrainConfig, spec: ArchSpec | None = None, emit: Listener = ignore) -> Plan:
    """Predict memory, disk and steps of a run, and say so in a Note. Weights are not loaded.

    Reads the headers of the model and of the dataset's caches, and the caches of one batch. Raises
    MusubiError for whatever would stop the run before it begins.
    """
    config.check()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        here = stack.enter_context(join_processes(config.loop.mixed_precision, config.loop.ddp_timeout))
        stack.enter_context(own_random_state(here.device))
        plan = plan_opened(open_run(config, spec, here, emit if here.main else ignore))
        emit(Note(text=plan.text()))
        return plan


def fitted(config: TrainConfig, spec: ArchSpec | None = None, emit: Listener = ignore) -> TrainConfig:
    """The run with the cheapest settings that keep to its limit: --vram_limit, else the memory of the card.

    Raises ConfigError with the plan when no settings do, so that the data would have to be smaller.
    """
    plan = plan_run(config, spec, emit)
    if plan.fits:
        return config
    limit = plan.limit or 0
    enough = [one.config for one in plan.suggestions if one.config and one.needed <= limit]
    if not enough:
        raise ConfigError(
            f"No settings make this run fit; it needs smaller pictures or shorter clips.\n{plan.text()}"
        )
    return enough[0]


def plan_opened(opened: Opened, *, advise: bool = True, limit: int | None = None) -> Plan:
    """The plan of a run that is opened already. advise: look for settings that fit when these do not.

    limit: bytes, instead of what the user or the card says.
    """
    batch = largest_batch(opened.training, opened.fresh.seed)
    counts: dict[Any, Rehearsal] = {}

    def predict(trial: Trial) -> Memory:
        config = trial.opened.config
        swap = config.swap
        places = swap.gradient_checkpointing_cpu_offload, swap.img_in_txt_in_offloading
        key = config.loop, config.fp8, places, trial.shrink
        if key not in counts:
            counts[key] = rehearse(trial.opened, prepare_largest(trial.opened, batch, trial.shrink))
        return memory_of(trial.opened, counts[key], items=_kept_items(opened))

    start = Trial(opened=opened)
    memory = predict(start)
    counted = next(iter(counts.values()))
    limit = _limit(opened) if limit is None else limit
    suggestions: tuple[Suggestion, ...] = ()
    if advise and limit is not None and memory.needed > limit:
        lists = [len(blocks) for blocks in counted.swappable]
        size = _size(opened, batch)
        suggestions = cheapest(start, memory, limit, size=size, lists=lists, predict=predict)
    return Plan(
        architecture=opened.spec.name,
        device=opened.here.device.type,
        memory=memory,
        disk=_disk(opened, counted, memory),
        steps=opened.plans.total,
        steps_per_epoch=opened.plans.steps_per_epoch,
        items=opened.training.samples_per_epoch,
        batch_size=len(batch.samples),
        largest=describe(batch.samples[0].item, opened.spec.latent_with(opened.config.arch_options)),
        limit=limit,
        suggestions=suggestions,
    )


def prepare_largest(opened: Opened, batch: BatchPlan, shrink: Shrink = AS_IS) -> Prepared:
    """The batch, ready for the network, at a middle noise level of its first expert. Draws from no state."""
    recipe = Recipe(
        spec=opened.spec,
        arch_options=opened.config.arch_options,
        timesteps=opened.config.timesteps,
        seed=opened.fresh.seed,
        epoch_samples=len(batch.samples),
        epoch_batches=1,
        intervals=intervals_of(opened.experts),
    )
    tensors = load_batch(batch)
    if shrink != AS_IS:
        tensors = shrunk(tensors, shrink)
    count = len(batch.samples)
    quantiles = torch.full((count,), 0.5, dtype=torch.float64)
    prepared = training_pair(recipe, tensors, quantiles=quantiles, noise_names=["plan"] * count)
    return replace(prepared, samples=batch.samples)


def _limit(opened: Opened) -> int | None:
    asked = opened.config.plan.vram_limit
    return card_memory(opened.here.device) if asked is None else int(asked * 1e9)


def _size(opened: Opened, batch: BatchPlan) -> Size:
    shape = opened.spec.latent_with(opened.config.arch_options)
    frames, rows, columns = latent_size(batch.samples[0].item)
    return Size(
        frames=frames, temporal=shape.temporal, width=columns * shape.spatial, height=rows * shape.spatial
    )


def _kept_items(opened: Opened) -> int:
    items = opened.training.items
    return min(KEPT_BYTES, sum(item.latents.stat().st_size + item.text.stat().st_size for item in items))


def _disk(opened: Opened, counted: Rehearsal, memory: Memory) -> Mapping[str, int]:
    saving = opened.config.saving
    loras = len({expert.lora for expert in opened.experts})
    trained = loras * numbers(counted.shapes)
    return disk_use(
        saving,
        lora=trained * dtype_of(saving.save_precision or "fp32").itemsize,
        state=4 * trained + memory.device[STATES],
        steps=opened.plans.total,
        steps_per_epoch=opened.plans.steps_per_epoch,
    )
