"""Whether a state may be continued with the options given now."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musubi_core.config import values_of
from musubi_core.data.training_set import TrainingSet
from musubi_core.errors import ConfigError
from musubi_core.files.digest import weights_identity
from musubi_core.models.spec import Expert
from musubi_core.training.config import TrainConfig
from musubi_core.training.state import RunState

# Options of the parts below that may change between two runs without changing where the weights go.
FREE = frozenset({"network_weights", "base_weights", "show_timesteps", "lora_key_format", "upcast_fp8"})


def trajectory(config: TrainConfig, *, precision: str, harmless: Sequence[str]) -> dict[str, Any]:
    """Every option that decides where the weights go, as JSON values.

    Paths are not among them, because files may move; `identities` tells whether they changed. harmless: the
    architecture's options that decide nothing.
    """
    validation = config.validation
    values: dict[str, Any] = {"mixed_precision": precision, "validation_split": validation.validation_split}
    if validation.validation_split:
        values["validation_seed"] = validation.validation_seed
    parts = (
        *(config.network, config.optimizer, config.schedule, config.timesteps, config.fp8),
        config.arch_options,
    )
    for part in parts:
        values |= {name: value for name, value in values_of(part).items() if _decides(name, value, harmless)}
    return {name: _plain(value) for name, value in values.items()}


def identities(config: TrainConfig, experts: Sequence[Expert], training: TrainingSet) -> dict[str, str]:
    """Short texts that change when the dataset, a network of the base model or merged LoRAs change."""
    found = {"dataset": dataset_identity(training), "dit": weights_identity(config.model.dit)}
    for expert in experts:
        if expert.path != config.model.dit:
            found[f"dit {expert.name}"] = weights_identity(expert.path)
    for number, path in enumerate(config.network.base_weights):
        found[f"base_weights {number + 1}"] = weights_identity(path)
    return found


def dataset_identity(training: TrainingSet) -> str:
    """Number of items, and a hash of what decides the order and content of batches."""
    digest = hashlib.sha256()
    for dataset in training.datasets:
        digest.update(f"{dataset.config.batch_size} {dataset.config.num_repeats}\n".encode())
        for item in dataset.items:
            sizes = item.latents.stat().st_size, item.text.stat().st_size
            digest.update(f"{item.latents.name}\0{item.text.name}\0{sizes}\0{item.shapes}\n".encode())
    return f"{len(training)} items, {digest.hexdigest()[:32]}"


def check_same_run(
    path: Path,
    state: RunState,
    now: RunState,
    *,
    seed: int | None,
) -> None:
    """Raises ConfigError that lists what changed, with the old and the new value.

    now: the state that a fresh start would have. seed: only if the user gave one.
    """
    changes = [
        f"{name}: {_shown(state.options.get(name))} then, {_shown(now.options.get(name))} now"
        for name in sorted({*now.options, *state.options})
        if now.options.get(name) != state.options.get(name)
    ]
    if seed is not None and seed != state.seed:
        changes.append(f"seed: {state.seed} then, {seed} now")
    if now.together != state.together:
        changes.append(
            f"batches per step (accumulation x processes): {state.together} then, {now.together} now"
        )
    for name in {**now.identities, **state.identities}:
        then, found = state.identities.get(name), now.identities.get(name)
        if then != found:
            changes.append(f"{name}: {_brief(then)} then, {_brief(found)} now")
    if changes:
        raise ConfigError(
            f"{path} cannot be continued exactly, because the run is not the same: {'; '.join(changes)}. "
            "Restore the old values, or start a new run with --network_weights and the LoRA of the old one."
        )


def _decides(name: str, value: Any, harmless: Sequence[str]) -> bool:
    return name not in FREE and name not in harmless and not isinstance(value, Path)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "not set" if value in (None, "", []) else str(value)


def _brief(identity: str | None) -> str:
    """Enough of a hash to see that it is another one."""
    if identity is None:
        return "none"
    words = identity.split()
    return " ".join([*words[:-1], words[-1][:8]])
