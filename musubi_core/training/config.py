"""Everything a training run can be told, from the dataclasses of its parts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from musubi_core.errors import ConfigError
from musubi_core.models.compile_options import CompileOptions
from musubi_core.networks.config import NetworkConfig
from musubi_core.offload.config import SwapConfig
from musubi_core.quantization.config import Fp8Options
from musubi_core.training.options.data import DataOptions
from musubi_core.training.options.logging import LoggingOptions
from musubi_core.training.options.loop import LoopOptions
from musubi_core.training.options.model import ModelOptions
from musubi_core.training.options.optimizer import OptimizerOptions
from musubi_core.training.options.plan import PlanOptions
from musubi_core.training.options.samples import SampleOptions
from musubi_core.training.options.saving import SavingOptions
from musubi_core.training.options.schedule import ScheduleOptions
from musubi_core.training.options.timesteps import TimestepOptions
from musubi_core.training.options.validation import ValidationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run. Only `training/run.py` sees it whole; every part gets the options that it owns."""

    data: DataOptions
    model: ModelOptions
    network: NetworkConfig
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    timesteps: TimestepOptions
    validation: ValidationOptions
    samples: SampleOptions
    loop: LoopOptions
    saving: SavingOptions
    logging: LoggingOptions
    compile: CompileOptions
    fp8: Fp8Options
    swap: SwapConfig
    plan: PlanOptions
    arch_options: object = None  # an instance of the architecture's train_options; None means its defaults
    # for samples: has `latent` and `text`, instances of its latent_options and text_options; None: defaults
    encoders: object = None

    def check(self) -> None:
        """Raises ConfigError for contradictions, before anything is opened."""
        self.model.check()
        self.optimizer.check()
        self.schedule.check()
        self.timesteps.check()
        self.validation.check()
        self.samples.check(self.model.vae)
        self.saving.check()
        self.logging.check()
        self.compile.check(split_attention=self.model.split_attn, swapping=bool(self.swap.blocks_to_swap))
        self.fp8.check()
        self.swap.check(checkpointing=self.loop.gradient_checkpointing)
        for name, path in (("dit", self.model.dit), ("dataset_config", self.data.dataset_config)):
            if not path.exists():
                raise ConfigError(f"--{name}: {path} does not exist. Give the path of an existing file.")
        if self.optimizer.optimizer_type.lower().endswith("schedulefree"):
            self._check_schedule_free()

    def _check_schedule_free(self) -> None:
        if self.schedule.lr_scheduler != "constant" or self.schedule.lr_scheduler_type:
            raise ConfigError(
                f"{self.optimizer.optimizer_type} needs no schedule, but lr_scheduler is "
                f"{self.schedule.lr_scheduler_type or self.schedule.lr_scheduler}. Use lr_scheduler "
                "constant, and --optimizer_args warmup_steps=100 for a warm-up."
            )


def with_arch_options(config: TrainConfig, options: Any) -> TrainConfig:
    """The config with an architecture's options: `train`, and `latent` and `text` for samples."""
    return replace(config, arch_options=options.train, encoders=options)
