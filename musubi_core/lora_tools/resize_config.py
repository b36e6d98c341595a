"""Options of `resize-lora`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.lora_tools.recipe import OF_BASE, Recipe, parse_recipes

PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeConfig:
    """Which LoRA is made smaller, and by which rule."""

    path: Path = option(help="The LoRA file.")
    output_file: Path = option(
        help="The smaller LoRA. With several recipes, each is put in a name of its own."
    )
    new_rank: int | None = option(
        None, help="Rank of every layer; with dynamic_method the highest that a layer may get.", ge=1
    )
    new_conv_rank: int | None = option(
        None, help="The same for convolutions with a kernel larger than 1. Default: new_rank.", ge=1
    )
    dynamic_method: str | None = option(
        None,
        help="Choose the rank of each layer. sv_ratio: keep singular values above the largest divided by "
        "dynamic_param. sv_fro, sv_cumulative: keep this share of the norm, or of the sum.",
        choices=("sv_ratio", "sv_fro", "sv_cumulative"),
    )
    dynamic_param: float | None = option(
        None, help="For dynamic_method: above 1 for sv_ratio, between 0 and 1 for the others."
    )
    recipe: str | None = option(
        None,
        help="Choose the rank of each layer by a recipe of resize_lora, e.g. fro_ckpt=1,thr=-3.5 or "
        "spn_lora=1,size=32. Several recipes are separated by a colon.",
    )
    dit: Path | None = option(
        None, help="The base model that the LoRA is for. Recipes with fro_ckpt, spn_ckpt or subspace need it."
    )
    architecture: str | None = option(
        None, help="Model family of the base model, where its file cannot tell.", advanced=True
    )
    save_precision: str | None = option(
        None, help="Number format of the result. Default: that of the file.", choices=PRECISIONS
    )
    plot: Path | None = option(None, help="Also draw the singular values of each kind of layer, as a PNG.")

    def check(self) -> None:
        """Raises ConfigError for options that exclude each other."""
        if self.recipe is not None and (self.dynamic_method or self.new_rank or self.new_conv_rank):
            raise ConfigError("recipe chooses the ranks itself. Leave out new_rank and dynamic_method.")
        if self.recipe is None and self.dynamic_method is None and self.new_rank is None:
            raise ConfigError("Say how far to go: --new_rank 8, --dynamic_method or --recipe.")
        if (self.dynamic_method is None) != (self.dynamic_param is None):
            raise ConfigError("dynamic_method and dynamic_param need each other.")
        self._check_param()
        if any(recipe.needs_base for recipe in self.recipes) and self.dit is None:
            raise ConfigError(
                f"This recipe compares with the base model ({', '.join(OF_BASE)}): give it with --dit."
            )
        if self.output_file.suffix.lower() != ".safetensors":
            raise ConfigError(f"output_file is {self.output_file}; give a name that ends in .safetensors.")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ConfigError(f"plot is {self.plot}; give a name that ends in .png.")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return () if self.recipe is None else parse_recipes(self.recipe)

    def _check_param(self) -> None:
        if self.dynamic_param is None:
            return
        if self.dynamic_method == "sv_ratio" and self.dynamic_param <= 1:
            raise ConfigError(f"dynamic_param is {self.dynamic_param:g}; sv_ratio needs a number above 1.")
        if self.dynamic_method != "sv_ratio" and not 0 < self.dynamic_param < 1:
            raise ConfigError(
                f"dynamic_param is {self.dynamic_param:g}; {self.dynamic_method} needs one between 0 and 1."
            )
