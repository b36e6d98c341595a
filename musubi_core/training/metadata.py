"""What a LoRA file says of itself: musubi-tuner's `ss_*` keys, `modelspec.*`, and what theirs leave out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.config import values_of
from musubi_core.models.spec import ArchSpec, Expert
from musubi_core.training.config import TrainConfig
from musubi_core.training.loras import named

MINIMAL = (
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_experts",
)
PRIVATE = {"wandb_api_key", "resume"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a run besides its options. total, per_epoch: optimizer steps, batches."""

    session_id: int
    started_at: float
    seed: int
    precision: str
    optimizer: str
    total: int
    epochs: int
    items: int
    batches_per_epoch: int
    datasets: Sequence[Mapping[str, Any]]
    experts: Sequence[Expert]


def lora_metadata(
    config: TrainConfig, spec: ArchSpec, facts: RunFacts, lora: str, step: int, epoch: int
) -> dict[str, str]:
    """For the LoRA of this name saved after `step` steps, in epoch `epoch` counted from 1.

    None becomes the text None.
    """
    experts = [expert for expert in facts.experts if expert.lora == lora]
    values = {**_network(config, spec), **_training(config, facts), **_timesteps(config), **_experts(experts)}
    values |= {
        "ss_datasets": json.dumps(list(facts.datasets)),
        "ss_steps": step,
        "ss_epoch": epoch,
        "ss_training_finished_at": time.time(),
    }
    if config.model.vae is not None:
        values["ss_vae_name"] = config.model.vae.name
    for name, value in values_of(config.arch_options).items():
        values.setdefault(f"ss_{name}", value.name if isinstance(value, Path) else value)
    values["musubi_core.options"] = json.dumps(every_option(config), ensure_ascii=False)
    if config.saving.no_metadata:
        values = {name: value for name, value in values.items() if name in MINIMAL}
    return {name: str(value) for name, value in values.items()} | _modelspec(config, spec, lora, experts)


def every_option(config: TrainConfig) -> dict[str, Any]:
    """Each option of the run by its name, as JSON values: from the declarations, so none is forgotten.

    Of a path only the last part, and of a key nothing: a LoRA is given to strangers.
    """
    values = {**values_of(config), **values_of(config.arch_options)}
    return {name: _shareable(value) for name, value in values.items() if name not in PRIVATE}


def _shareable(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    return [_shareable(one) for one in value] if isinstance(value, tuple) else value


def _network(config: TrainConfig, spec: ArchSpec) -> dict[str, Any]:
    network = config.network
    values: dict[str, Any] = {
        "ss_base_model_version": spec.latent.architecture,
        "ss_network_module": spec.network_modules[0],
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.network_alpha,
        "ss_network_dropout": network.network_dropout,
        "ss_scale_weight_norms": network.scale_weight_norms,
    }
    if network.network_args:
        pairs = (item.partition("=") for item in network.network_args)
        values["ss_network_args"] = json.dumps({key: value for key, _, value in pairs})
    return values


def _training(config: TrainConfig, facts: RunFacts) -> dict[str, Any]:
    loop, schedule = config.loop, config.schedule
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_output_name": config.saving.output_name,
        "ss_learning_rate": config.optimizer.learning_rate,
        "ss_num_train_items": facts.items,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": facts.epochs,
        "ss_gradient_checkpointing": loop.gradient_checkpointing,
        "ss_gradient_checkpointing_cpu_offload": config.swap.gradient_checkpointing_cpu_offload,
        "ss_gradient_accumulation_steps": loop.gradient_accumulation_steps,
        "ss_max_train_steps": facts.total,
        "ss_lr_warmup_steps": schedule.lr_warmup_steps,
        "ss_lr_scheduler": schedule.lr_scheduler_type or schedule.lr_scheduler,
        "ss_lr_scheduler_args": " ".join(schedule.lr_scheduler_args) or None,
        "ss_mixed_precision": facts.precision,
        "ss_seed": facts.seed,
        "ss_training_comment": config.saving.training_comment,
        "ss_optimizer": facts.optimizer,
        "ss_max_grad_norm": config.optimizer.max_grad_norm,
        **{f"ss_{name}": value for name, value in values_of(config.fp8).items()},
        "ss_full_fp16": False,
        "ss_full_bf16": False,
    }


def _timesteps(config: TrainConfig) -> dict[str, Any]:
    options = config.timesteps
    return {
        "ss_weighting_scheme": options.weighting_scheme,
        "ss_logit_mean": options.logit_mean,
        "ss_logit_std": options.logit_std,
        "ss_mode_scale": options.mode_scale,
        "ss_timestep_sampling": options.timestep_sampling,
        "ss_sigmoid_scale": options.sigmoid_scale,
        "ss_discrete_flow_shift": options.discrete_flow_shift,
        "ss_min_timestep": options.min_timestep,
        "ss_max_timestep": options.max_timestep,
    }


def _experts(experts: Sequence[Expert]) -> dict[str, Any]:
    """The networks that the LoRA was trained on; with their timesteps where there are several."""
    values: dict[str, Any] = {"ss_sd_model_name": ", ".join(expert.path.name for expert in experts)}
    ranges = {one.name: [1000 * one.t_min, 1000 * one.t_max] for one in experts if one.name}
    return {**values, "ss_experts": json.dumps(ranges)} if ranges else values


def _modelspec(config: TrainConfig, spec: ArchSpec, lora: str, experts: Sequence[Expert]) -> dict[str, str]:
    saving, timesteps = config.saving, config.timesteps
    resolution = saving.metadata_reso
    values = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{saving.metadata_arch or spec.card.architecture}/lora",
        "implementation": spec.card.implementation,
        "title": saving.metadata_title or named(saving.output_name, lora),
        "resolution": "x".join(resolution.split(",")) if resolution else spec.card.resolution,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "author": saving.metadata_author,
        "description": saving.metadata_description,
        "license": saving.metadata_license,
        "tags": saving.metadata_tags,
    }
    low = max(timesteps.range[0], experts[0].t_min)
    high = min(timesteps.range[1], experts[-1].t_max)
    given = timesteps.min_timestep is not None or timesteps.max_timestep is not None
    if given or (low, high) != (0.0, 1.0):
        values["timestep_range"] = f"{low * 1000:g},{high * 1000:g}"
    return {f"modelspec.{name}": value for name, value in values.items() if value is not None}
