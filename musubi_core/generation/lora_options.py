"""Which LoRAs a model gets when it draws. No torch here: the command line is built from this file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

MODES = ("merge", "runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraUse:
    """One LoRA file for one network. include, exclude: regular expressions, "" for none."""

    path: Path
    multiplier: float = 1.0
    include: str = ""
    exclude: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Files, strengths, and the layers of each that are used."""

    lora_weight: tuple[Path, ...] = option(
        (), help="LoRA files. With two networks these are for the one for low noise."
    )
    lora_multiplier: tuple[float, ...] = option(
        (), help="Strength of each file in lora_weight, in the same order; 1 where none is given."
    )
    include_patterns: tuple[str, ...] = option(
        (),
        help="For each file in lora_weight a regular expression, searched for in the names of its layers "
        "(lora_unet_blocks_9_cross_attn_k). Only layers that it finds are used.",
    )
    exclude_patterns: tuple[str, ...] = option(
        (), help="The same, for layers that are left out, also of those that include_patterns finds."
    )
    lora_weight_high_noise: tuple[Path, ...] = option(
        (),
        help="LoRA files for the network for high noise, where a model has two. A LoRA that both share is "
        "given in lora_weight too.",
    )
    lora_multiplier_high_noise: tuple[float, ...] = option(
        (), help="Strength of each file in lora_weight_high_noise; 1 where none is given."
    )
    include_patterns_high_noise: tuple[str, ...] = option(
        (), help="include_patterns for lora_weight_high_noise.", advanced=True
    )
    exclude_patterns_high_noise: tuple[str, ...] = option(
        (), help="exclude_patterns for lora_weight_high_noise.", advanced=True
    )
    lora_mode: str = option(
        "merge",
        choices=MODES,
        help="merge adds LoRAs to the weights while the model is loaded. runtime computes them beside the "
        "layers: slower, but exact also when the weights are in fp8 or bf16.",
        advanced=True,
    )
    save_merged_model: Path | None = option(
        None,
        help="Write the model with the LoRAs merged into it to this .safetensors file, and draw nothing. "
        "With two networks, two files.",
    )

    def check(self) -> None:
        """Raises ConfigError for numbers and patterns without a file, and for missing files."""
        low, high = self.low_noise, self.high_noise
        for use in (*low, *high):
            if not use.path.is_file():
                raise ConfigError(f"LoRA {use.path} does not exist. Give the path of an existing file.")
            if not math.isfinite(use.multiplier):
                raise ConfigError(f"The multiplier of {use.path} is no number.")
        if self.save_merged_model is not None:
            self._check_merged(self.save_merged_model)

    @property
    def low_noise(self) -> tuple[LoraUse, ...]:
        """For the only network, or that for low noise."""
        return _uses(
            "lora_weight",
            self.lora_weight,
            lora_multiplier=self.lora_multiplier,
            include_patterns=self.include_patterns,
            exclude_patterns=self.exclude_patterns,
        )

    @property
    def high_noise(self) -> tuple[LoraUse, ...]:
        """For the network for high noise."""
        return _uses(
            "lora_weight_high_noise",
            self.lora_weight_high_noise,
            lora_multiplier=self.lora_multiplier_high_noise,
            include_patterns=self.include_patterns_high_noise,
            exclude_patterns=self.exclude_patterns_high_noise,
        )

    def _check_merged(self, path: Path) -> None:
        if path.suffix.lower() != ".safetensors":
            raise ConfigError(f"save_merged_model is {path}; give a name that ends in .safetensors.")
        if not self.lora_weight and not self.lora_weight_high_noise:
            raise ConfigError("--save_merged_model has no LoRA to merge. Give --lora_weight.")


def _uses(
    weight: str,
    files: Sequence[Path],
    *,
    lora_multiplier: Sequence[float],
    include_patterns: Sequence[str],
    exclude_patterns: Sequence[str],
) -> tuple[LoraUse, ...]:
    """Files with what belongs to each by its place; what is missing at the end is as usual."""
    ending = weight.removeprefix("lora_weight")
    beside = {
        "lora_multiplier": len(lora_multiplier),
        "include_patterns": len(include_patterns),
        "exclude_patterns": len(exclude_patterns),
    }
    for name, count in beside.items():
        if count > len(files):
            raise ConfigError(
                f"--{name}{ending} has {count} values for {len(files)} files in --{weight}. Give one for "
                "each file."
            )

    def at(values: Sequence[str], place: int) -> str:
        return values[place] if place < len(values) else ""

    return tuple(
        LoraUse(
            path=path,
            multiplier=lora_multiplier[place] if place < len(lora_multiplier) else 1.0,
            include=at(include_patterns, place),
            exclude=at(exclude_patterns, place),
        )
        for place, path in enumerate(files)
    )
