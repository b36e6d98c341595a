"""Groups of training options, each a node of its own, so that Train LoRA stays small."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from musubi_core.config import options_of
from musubi_core.models.compile_options import CompileOptions
from musubi_core.models.registry import architectures
from musubi_core.networks.config import NetworkConfig
from musubi_core.offload.config import SwapConfig
from musubi_core.quantization.config import Fp8Options
from musubi_core.training.options.loop import LoopOptions
from musubi_core.training.options.model import ModelOptions
from musubi_core.training.options.optimizer import OptimizerOptions
from musubi_core.training.options.plan import PlanOptions
from musubi_core.training.options.saving import SavingOptions
from musubi_core.training.options.schedule import ScheduleOptions
from musubi_core.training.options.validation import ValidationOptions

from ..files import choosers_for
from ..inputs import config_from, inputs_of, values_from
from ..schema import aliases, schema, validator
from ..values import MemoryType, NetworkType, OptimizerType, SavingType, Settings

CATEGORY = "Musubi/Training"
ATTENTIONS = ("sdpa", "flash_attn", "xformers", "flash3")  # each is a flag of its own on the command line
MEMORY_OF_LOOP = ("gradient_checkpointing", "mixed_precision")
NAMED_ELSEWHERE = ("output_dir", "output_name", "resume")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Options of one dataclass; all of them when `only` is empty."""

    cls: type
    only: Collection[str] = ()
    skip: Collection[str] = ()

    def inputs(self) -> list[Any]:
        return inputs_of(self.cls, only=self.only, skip=self.skip, choosers=choosers_for(self.cls))

    def values(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What the node says about these options."""
        names = {info.name for info in options_of(self.cls) if info.name not in self.skip}
        mine = {name: value for name, value in given.items() if name in (self.only or names)}
        return values_from(self.cls, mine, where=where, choosers=choosers_for(self.cls))


NETWORK = (Part(cls=NetworkConfig),)
OPTIMIZER = (Part(cls=OptimizerOptions), Part(cls=ScheduleOptions))
MEMORY = (
    Part(cls=LoopOptions, only=MEMORY_OF_LOOP),
    Part(cls=Fp8Options),
    Part(cls=SwapConfig, skip=("block_swap_h2d_only",)),
    Part(cls=ModelOptions, only=("split_attn",)),
    Part(cls=CompileOptions),
    Part(cls=PlanOptions, skip=("plan",)),
)
SAVING = (Part(cls=SavingOptions, skip=NAMED_ELSEWHERE), Part(cls=ValidationOptions))


def inputs_of_parts(parts: tuple[Part, ...]) -> list[Any]:
    return [one for part in parts for one in part.inputs()]


def settings(parts: tuple[Part, ...], given: Mapping[str, Any], where: str) -> Settings:
    """The options of a group by name."""
    values: dict[str, Any] = {}
    for part in parts:
        values |= part.values(given, where)
    return Settings(values=values)


def network_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for a kind of network or arguments that no architecture has."""
    found = settings(NETWORK, given, "Network")
    known = {module for spec in architectures() for module in spec.network_modules}
    config_from(NetworkConfig, {}, where="Network", fixed=found.values).check(network_modules=known)
    return found


def optimizer_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for an optimizer and a schedule that contradict each other."""
    found = settings(OPTIMIZER, given, "Optimizer")
    for part in OPTIMIZER:
        names = {info.name for info in options_of(part.cls)}
        mine = {name: value for name, value in found.values.items() if name in names}
        config_from(part.cls, {}, where="Optimizer", fixed=mine).check()
    return found


def memory_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for ways to save memory that contradict each other."""
    found = settings(MEMORY, given, "Memory")
    values = dict(found.values)
    fp8 = _build(Fp8Options, values)
    fp8.check()
    _build(SwapConfig, values).check(checkpointing=bool(values.get("gradient_checkpointing")))
    compiling = _build(CompileOptions, values)
    compiling.check(
        split_attention=bool(values.get("split_attn")), swapping=bool(values.get("blocks_to_swap"))
    )
    attention = given.get("attention") or ATTENTIONS[0]
    return Settings(values={**values, attention: True})


def saving_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for keeping what is never saved."""
    found = settings(SAVING, given, "Saving")
    _build(SavingOptions, {**found.values, "output_dir": ".", "output_name": "name"}).check()
    _build(ValidationOptions, found.values).check()
    return found


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    """The dataclass of those values that belong to it."""
    names = {info.name for info in options_of(cls)}
    mine = {name: value for name, value in values.items() if name in names}
    return config_from(cls, {}, where="this node", fixed=mine)


def attention_input() -> Any:
    """One choice for what are several flags on the command line."""
    texts = {info.name: info.help for info in options_of(ModelOptions)}
    tooltip = " ".join(f"{name}: {texts[name]}" for name in ATTENTIONS)
    return io.Combo.Input(
        "attention", options=list(ATTENTIONS), default=ATTENTIONS[0], optional=True, tooltip=tooltip
    )


class Network(io.ComfyNode):
    """Which adapters are trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiNetwork",
            display_name="Network",
            category=CATEGORY,
            description="Kind, rank and strength of the adapters that are trained, and a LoRA to start from.",
            search_aliases=aliases("lora rank", "dim", "alpha", "lokr", "loha"),
            inputs=inputs_of_parts(NETWORK),
            outputs=[NetworkType.Output("network", tooltip="To Train LoRA.")],
        )

    validate_inputs = validator(
        network_settings,
        *("network_module", "network_args", "network_weights", "dim_from_weights", "base_weights"),
        "base_weights_multiplier",
    )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(network_settings(given))


class Optimizer(io.ComfyNode):
    """How weights move, and how fast."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiOptimizer",
            display_name="Optimizer",
            category=CATEGORY,
            description="Optimizer, learning rate and its schedule.",
            search_aliases=aliases("learning rate", "scheduler", "warmup", "adamw", "prodigy"),
            inputs=inputs_of_parts(OPTIMIZER),
            outputs=[OptimizerType.Output("optimizer", tooltip="To Train LoRA.")],
        )

    validate_inputs = validator(
        optimizer_settings,
        *("optimizer_args", "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_args"),
        *("lr_scheduler_type", "lr_scheduler_min_lr_ratio"),
    )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(optimizer_settings(given))


class Memory(io.ComfyNode):
    """What is given up for less memory, or for more speed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiMemory",
            display_name="Memory and Speed",
            category=CATEGORY,
            description="8-bit base weights, block swap, gradient checkpointing, attention, compilation. "
            "Plan Training says what a run needs with them.",
            search_aliases=aliases("vram", "fp8", "block swap", "offload", "torch compile", "attention"),
            inputs=[*inputs_of_parts(MEMORY), attention_input()],
            outputs=[MemoryType.Output("memory", tooltip="To Train LoRA and Plan Training.")],
        )

    validate_inputs = validator(
        memory_settings,
        *("gradient_checkpointing", "fp8_base", "fp8_scaled", "fp8_fast", "upcast_fp8", "blocks_to_swap"),
        *("gradient_checkpointing_cpu_offload", "compile", "dynamo_backend", "compile_fullgraph"),
    )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(memory_settings(given))


class Saving(io.ComfyNode):
    """What a run writes besides the final LoRA, and what is held out to measure it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiSaving",
            display_name="Saving and Validation",
            category=CATEGORY,
            description="LoRAs and states along the way, texts stored in the LoRA, and files held out to "
            "measure the loss on.",
            search_aliases=aliases("checkpoint", "save every", "validation", "metadata"),
            inputs=inputs_of_parts(SAVING),
            outputs=[SavingType.Output("saving", tooltip="To Train LoRA.")],
        )

    validate_inputs = validator(
        saving_settings,
        *("save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_last_n_steps"),
        *("ema_sigma_rel", "validation_split", "validate_every_n_steps", "validate_every_n_epochs"),
    )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(saving_settings(given))
