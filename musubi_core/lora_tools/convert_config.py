"""Options of `convert-lora`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """Which LoRA is rewritten, and for which program."""

    input: Path = option(help="The LoRA: a file of any program, or a PEFT folder.")
    output: Path = option(help="The new file (.safetensors). For target peft: a folder.")
    target: str = option(
        help="default: musubi-tuner and kohya (lora_unet_...). comfyui: ComfyUI's own names "
        "(diffusion_model....). diffusers: diffusers' names (transformer....), alpha in the header. peft: a "
        "folder with adapter_config.json. other: diffusion-pipe, as musubi-tuner writes it, alpha inside the "
        "weights.",
        choices=("default", "other", "comfyui", "diffusers", "peft"),
    )
    architecture: str | None = option(
        None, help="The model that the LoRA is for. Needed only where its names and metadata cannot tell."
    )
    target_architecture: str | None = option(
        None, help="Rewrite the LoRA for a related model, for example HunyuanVideo's for FramePack, and back."
    )
    lora_key_format: str = option(
        "comfyui",
        help="Names with target default. comfyui: those that ComfyUI finds. musubi: musubi-tuner's own, "
        "some of which ComfyUI ignores.",
        choices=("comfyui", "musubi"),
        advanced=True,
    )
    diffusers_prefix: str = option(
        "diffusion_model",
        help="First word of the names with target other.",
        choices=("diffusion_model", "transformer"),
        advanced=True,
    )
    allow_drop: bool = option(
        False, help="Leave out what has no place in the new file, and list it. Otherwise that is an error."
    )
    dry_run: bool = option(False, help="Say what would change, check everything, and write nothing.")

    def check(self) -> None:
        """Raises ConfigError for an output that cannot be meant."""
        if self.target != "peft" and self.output.suffix.lower() != ".safetensors":
            raise ConfigError(f"output is {self.output}; give a name that ends in .safetensors.")
        if self.target == "peft" and self.output.suffix:
            raise ConfigError(f"output is {self.output}; for target peft give the name of a folder.")
        if self.output.resolve() == self.input.resolve():
            raise ConfigError(f"output is the input itself, {self.input}. Give another name.")
