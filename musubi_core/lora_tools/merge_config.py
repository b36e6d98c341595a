"""Options of `merge-lora`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.lora_tools.fp8_file_config import DEFAULT_GRANULARITY
from musubi_core.lora_tools.resize_config import PRECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """Which LoRAs become one, or part of a model."""

    lora_weight: tuple[Path, ...] = option(help="The LoRA files.")
    output_file: Path = option(help="The merged LoRA, or the merged model.")
    lora_multiplier: tuple[float, ...] = option(
        (), help="Strength of each LoRA, in the same order; may be negative. Default: 1 for all."
    )
    dit: Path | None = option(None, help="Merge into this model, and write a whole model instead of a LoRA.")
    new_rank: int | None = option(None, help="Rank of every layer of the merged LoRA.", ge=1)
    energy: float | None = option(
        None,
        help="Keep this share of each layer's change, measured by the norm, e.g. 0.99. With new_rank: at "
        "most that rank.",
        ge=0.0,
        le=1.0,
    )
    size: float | None = option(
        None, help="Keep the strongest directions that fit into a file of this many MiB."
    )
    disjoint: bool = option(
        False, help="Accept LoRAs that have no layer in common: each trains another part of one model."
    )
    architecture: str | None = option(
        None, help="Model family that the LoRAs are for, where the files cannot tell.", advanced=True
    )
    save_precision: str | None = option(
        None,
        help="Number format of the result. Default: that of the files; a model in fp8 becomes bf16.",
        choices=PRECISIONS,
    )

    fp8: str | None = option(
        None,
        help="With dit: write a model with 8-bit weights, each sum rounded once. musubi: for --fp8_scaled. "
        "comfyui: for ComfyUI's own loader. As quantize-fp8 does with the same target.",
        choices=tuple(DEFAULT_GRANULARITY),
    )

    def check(self) -> None:
        """Raises ConfigError for options that exclude each other."""
        if not self.lora_weight:
            raise ConfigError("No LoRA was given. Name the files to merge.")
        if self.lora_multiplier and len(self.lora_multiplier) != len(self.lora_weight):
            raise ConfigError(
                f"{len(self.lora_weight)} LoRAs and {len(self.lora_multiplier)} multipliers were given. Give "
                "one multiplier for each LoRA."
            )
        if not all(math.isfinite(one) and one for one in self.multipliers):
            raise ConfigError("A lora_multiplier is 0 or not a number. Leave that LoRA out instead.")
        if self.dit is not None and (self.new_rank or self.energy is not None or self.size is not None):
            raise ConfigError("new_rank, energy and size are for a merged LoRA; a model has no rank.")
        if self.fp8 is not None and (self.dit is None or self.save_precision is not None):
            raise ConfigError(
                "fp8 is a number format of a model: it needs --dit, and takes the place of save_precision."
            )
        if self.size is not None and (self.new_rank or self.energy is not None or self.size <= 0):
            raise ConfigError("size must be above 0, and chooses the ranks: leave out new_rank and energy.")
        paths = [path.resolve() for path in self.lora_weight]
        if doubled := [str(path) for place, path in enumerate(paths) if path in paths[:place]]:
            raise ConfigError(f"{doubled[0]} is given twice. Name it once, with the sum of its multipliers.")
        if self.output_file.suffix.lower() != ".safetensors":
            raise ConfigError(f"output_file is {self.output_file}; give a name that ends in .safetensors.")
        inputs = {path.resolve() for path in (*self.lora_weight, *filter(None, [self.dit]))}
        if self.output_file.resolve() in inputs:
            raise ConfigError(f"{self.output_file} is one of the inputs. Give another output_file.")

    @property
    def multipliers(self) -> tuple[float, ...]:
        return self.lora_multiplier or (1.0,) * len(self.lora_weight)
