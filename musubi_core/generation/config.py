"""Everything that `generate` can be told, from the dataclasses of its parts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from musubi_core.config import build
from musubi_core.errors import ConfigError
from musubi_core.generation.lora_options import LoraOptions
from musubi_core.generation.model_options import ModelOptions
from musubi_core.generation.output_options import OutputOptions
from musubi_core.generation.prompt_options import PromptOptions
from musubi_core.models.compile_options import CompileOptions
from musubi_core.models.spec import ArchSpec
from musubi_core.sampling.magcache_config import MagCacheConfig

PARTS = {"train": "train_options", "latent": "latent_options", "text": "text_options"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """One call of `generate`. Only `generation/job.py` sees it whole.

    arch_options: an instance of `arch_options_class` of the architecture; None means its defaults.
    """

    model: ModelOptions
    prompts: PromptOptions
    loras: LoraOptions
    output: OutputOptions
    magcache: MagCacheConfig
    compile: CompileOptions
    arch_options: object = None

    @property
    def decodes(self) -> bool:
        """Whether there is nothing to draw, only latents to decode."""
        return bool(self.output.latent_path)

    def check(self) -> None:
        """Raises ConfigError for contradictions, before anything is opened."""
        self.output.check()
        self.model.check()
        if self.decodes:
            self._check_decoding()
            return
        self.loras.check()
        if self.model.dit is None:
            raise ConfigError("--dit is missing. Give the model file, or --latent_path to decode latents.")
        if not self.model.dit.exists():
            raise ConfigError(f"--dit: {self.model.dit} does not exist. Give the path of an existing file.")
        self.compile.check(
            split_attention=self.model.split_attn, swapping=bool(self.model.swap.blocks_to_swap)
        )
        if self.loras.save_merged_model is not None:
            self._check_merging()
            return
        self.prompts.check()
        if self.output.save_path is None:
            raise ConfigError("--save_path is missing. Give the folder for pictures and clips.")

    def _check_decoding(self) -> None:
        if self.output.save_path is None:
            raise ConfigError("--save_path is missing. Give the folder for pictures and clips.")
        if self.model.vae is None:
            raise ConfigError("--latent_path needs the VAE that decodes the latents. Give --vae.")
        if self.output.output_type in ("latent", "both", "latent_images"):
            raise ConfigError(
                f"--latent_path decodes latents that exist, and --output_type {self.output.output_type} "
                "would write them again. Use --output_type video or images."
            )

    def _check_merging(self) -> None:
        if self.model.fp8:
            raise ConfigError(
                "--save_merged_model writes the merged model in full precision, and --fp8 is not for that. "
                "Leave --fp8 out; musubi quantize-fp8 makes an fp8 file of the result."
            )


def arch_options_class(spec: ArchSpec) -> type:
    """An architecture's own options for drawing: those of its networks, its VAE and its text encoders.

    A dataclass with the fields `train`, `latent` and `text`, each with its defaults.
    """
    parts = {name: getattr(spec, attribute) for name, attribute in PARTS.items()}
    return make_dataclass(
        "ArchOptions",
        [(name, cls, field(default_factory=cls)) for name, cls in parts.items()],
        frozen=True,
        kw_only=True,
    )


def arch_options(spec: ArchSpec, **values: Any) -> Any:
    """An instance of that class: the values by option name, in each part that knows the name."""
    return build(arch_options_class(spec), values, where="arch_options")
