"""From what is connected to a training node to the core's TrainConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.training.config import TrainConfig
from musubi_core.training.options.loop import LoopOptions
from musubi_core.training.options.saving import SavingOptions

from ..files import choosers_for
from ..folders import run_folder
from ..inputs import inputs_of, values_from
from ..values import (
    Cached,
    LatentsType,
    MemoryType,
    ModelType,
    NetworkType,
    OptimizerType,
    SamplesType,
    SavingType,
    Settings,
    TextsType,
    TimestepsType,
    TrainingModel,
)

OWN = ("max_train_steps", "max_train_epochs", "seed", "gradient_accumulation_steps", "max_nonfinite_steps")
NAME = ("output_name",)
RESUME, START_OVER = "if possible", "start over"
GROUPS = {
    "network": (NetworkType, "Kind and rank of the adapters. Not connected: a small LoRA."),
    "optimizer": (OptimizerType, "Optimizer and learning rate. Not connected: AdamW at a constant 1e-4."),
    "timesteps": (TimestepsType, "Noise levels. Not connected: spread evenly."),
    "memory": (MemoryType, "Ways to need less memory. Not connected: none."),
    "sampling": (SamplesType, "Prompts that are drawn while training. Not connected: nothing is drawn."),
    "saving": (SavingType, "What is saved along the way, and validation. Not connected: nothing."),
}


def run_inputs() -> list[Any]:
    """What describes a run, the same for training and for planning it."""
    return [
        ModelType.Input("model", tooltip="The model that the LoRA is for."),
        LatentsType.Input("latents", tooltip="From Cache Latents."),
        TextsType.Input("texts", tooltip="From Cache Text, of the same dataset."),
        *inputs_of(SavingOptions, only=NAME),
        *inputs_of(LoopOptions, only=OWN),
        *(kind.Input(name, optional=True, tooltip=text) for name, (kind, text) in GROUPS.items()),
    ]


def check_own(given: Mapping[str, Any]) -> None:
    """The checks that are possible before anything runs."""
    name = given.get("output_name")
    if name is not None:
        SavingOptions(output_dir=Path(), output_name=str(name)).check()


def train_config(
    model: TrainingModel, latents: Cached, texts: Cached, given: Mapping[str, Any], *, where: str
) -> TrainConfig:
    """The run that is connected. given: the other inputs by name.

    where: the node, named in errors. Raises ConfigError for parts that do not belong together.
    """
    for name, cached in (("latents", latents), ("texts", texts)):
        if cached.model.architecture != model.architecture:
            raise ConfigError(
                f"{where}: {name} were cached for {cached.model.architecture}, but the model is "
                f"{model.architecture}. Connect the same Training Model to all of them."
            )
    if latents.dataset != texts.dataset:
        raise ConfigError(
            f"{where}: latents and texts were cached from different datasets. Connect one dataset to both "
            "caching nodes."
        )
    check_own(given)
    values: dict[str, Any] = {
        "dataset_config": latents.dataset.file(),
        "dit": model.dit,
        "vae": model.vae,
        "architecture": model.architecture,
        "output_dir": run_folder(str(given["output_name"])),
        "resume": None if given.get("resume") == START_OVER else "auto",
    }
    for cls, names in ((SavingOptions, NAME), (LoopOptions, OWN)):
        mine = {name: given[name] for name in names if name in given}
        values |= values_from(cls, mine, where=where, choosers=choosers_for(cls))
    for name in GROUPS:
        group: Settings | None = given.get(name)
        values |= {} if group is None else group.values
    config = build(TrainConfig, values, where=where)
    return dataclasses.replace(config, arch_options=model.train_options, encoders=model.encoders)


def resume_input() -> Any:
    """Whether a run of this name goes on."""
    return io.Combo.Input(
        "resume",
        options=[RESUME, START_OVER],
        default=RESUME,
        optional=True,
        tooltip="A run of this name that was stopped or cancelled goes on exactly where it ended, or begins "
        "again from step 1.",
    )
