"""The jobs of the command line, and where each finds its options and its work.

Nothing is imported before a job is asked for, so that `musubi --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from musubi_core.cli.flags import Flag, gather
from musubi_core.cli.settings import Settings
from musubi_core.cli.shared import SharedConfig
from musubi_core.config import unknown_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One word after `musubi`.

    config, run: "module:name". run takes (config, listener, should_stop); what it returns is not used.
    arch_options: attribute of ArchSpec that holds the architecture's own options for this job, or
    "module:name" of a function that makes their class from the spec. without: attribute of ArchSpec that
    names those of them that the job has no use for. take_arch_options: "module:name" of what puts an instance
    of that class into the config; usually it becomes `arch_options`.
    checkpoint: option whose file tells the architecture. results: option whose files may say in words which
    one they are of, and "module:name" of a function that reads that from one, "" when it does not.
    positional: option that needs no flag.
    """

    name: str
    help: str
    config: str
    run: str
    arch_options: str = ""
    without: str = ""
    take_arch_options: str = ""
    checkpoint: str = ""
    results: tuple[str, str] = ("", "")
    positional: str = ""

    def config_class(self) -> type[Any]:
        return _look_up(self.config)

    def runner(self) -> Callable[..., Any]:
        return _look_up(self.run)

    def named_by(self, settings: Settings) -> str:
        """The architecture that the first of the user's result files says it is of; "" when none does."""
        option, reader = self.results
        given = settings[option].value if option in settings else None
        first = given[0] if given and isinstance(given, list) else given
        return str(_look_up(reader)(Path(first))) if isinstance(first, str) else ""

    def arch_classes(self) -> dict[str, type]:
        """The option classes of every registered architecture by its name."""
        if not self.arch_options:
            return {}
        from musubi_core.models.registry import architectures

        if ":" in self.arch_options:
            make = _look_up(self.arch_options)
            return {spec.name: make(spec) for spec in architectures()}
        return {spec.name: getattr(spec, self.arch_options) for spec in architectures()}

    def with_arch_options(self, config: Any, options: Any) -> Any:
        """The config with its architecture's own options inside."""
        if self.take_arch_options:
            return _look_up(self.take_arch_options)(config, options)
        return dataclasses.replace(config, arch_options=options)

    def hidden(self) -> dict[str, tuple[str, ...]]:
        """For every registered architecture, the options of its class that the job does not have."""
        if not self.without:
            return {}
        from musubi_core.models.registry import architectures

        return {spec.name: getattr(spec, self.without) for spec in architectures()}

    def flags(self) -> dict[str, Flag]:
        """Every option of the job by name."""
        return gather((SharedConfig, self.config_class()), self.arch_classes(), self.hidden())


JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job(
            name="cache-latents",
            help="Turn the pictures and clips of a dataset into latents on disk.",
            config="musubi_core.training.cache_config:CacheLatentsConfig",
            run="musubi_core.cli.work:cache_latents",
            arch_options="latent_options",
        ),
        Job(
            name="cache-text",
            help="Turn the captions of a dataset into text encoder outputs on disk.",
            config="musubi_core.training.cache_config:CacheTextConfig",
            run="musubi_core.cli.work:cache_text",
            arch_options="text_options",
        ),
        Job(
            name="train",
            help="Train a LoRA on cached data.",
            config="musubi_core.training.config:TrainConfig",
            run="musubi_core.cli.work:train",
            arch_options="musubi_core.generation.config:arch_options_class",
            take_arch_options="musubi_core.training.config:with_arch_options",
            checkpoint="dit",
        ),
        Job(
            name="generate",
            help="Make pictures or clips with a base model and LoRAs.",
            config="musubi_core.generation.config:GenerateConfig",
            run="musubi_core.cli.work:generate",
            arch_options="musubi_core.generation.config:arch_options_class",
            without="training_only",
            checkpoint="dit",
            results=("latent_path", "musubi_core.generation.outputs:architecture_told"),
        ),
        Job(
            name="convert-lora",
            help="Rewrite a LoRA for another program, or for a related model.",
            config="musubi_core.lora_tools.convert_config:ConvertConfig",
            run="musubi_core.cli.work:convert_lora",
        ),
        Job(
            name="ema-merge",
            help="Average the checkpoints of one run after training (post-hoc EMA).",
            config="musubi_core.lora_tools.ema_config:EmaConfig",
            run="musubi_core.cli.work:ema_merge",
            positional="path",
        ),
        Job(
            name="merge-lora",
            help="Merge LoRAs into one, or into a model.",
            config="musubi_core.lora_tools.merge_config:MergeConfig",
            run="musubi_core.cli.work:merge_lora",
            positional="lora_weight",
        ),
        Job(
            name="extract-lora",
            help="Make a LoRA from the difference of two models.",
            config="musubi_core.lora_tools.extract_config:ExtractConfig",
            run="musubi_core.cli.work:extract_lora",
        ),
        Job(
            name="resize-lora",
            help="Lower the ranks of a LoRA, layer by layer.",
            config="musubi_core.lora_tools.resize_config:ResizeConfig",
            run="musubi_core.cli.work:resize_lora",
            positional="path",
        ),
        Job(
            name="quantize-fp8",
            help="Write a model with scaled fp8 weights: half the size, for training or for ComfyUI.",
            config="musubi_core.lora_tools.fp8_file_config:Fp8FileConfig",
            run="musubi_core.cli.work:quantise_file",
        ),
        Job(
            name="inspect",
            help="Say what a dataset file would train on, or what a model file holds.",
            config="musubi_core.cli.inspect_file:InspectConfig",
            run="musubi_core.cli.inspect_file:inspect",
            positional="file",
        ),
        Job(
            name="demo",
            help="See the whole way from photographs to a LoRA in minutes, without downloads or a GPU.",
            config="musubi_core.demo.config:DemoConfig",
            run="musubi_core.cli.work:demo",
        ),
    )
}


def _look_up(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def job_named(word: str) -> Job:
    """The job of that name; cache_latents means cache-latents. Raises ConfigError with the nearest names."""
    name = word.replace("_", "-")
    if name not in JOBS:
        raise unknown_key(word, JOBS, where="musubi", kind="job")
    return JOBS[name]
