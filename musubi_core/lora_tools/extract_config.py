"""Options of `extract-lora`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.lora_tools.resize_config import PRECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractConfig:
    """Which difference becomes a LoRA, and how closely."""

    model_org: Path = option(help="The model before it was tuned.")
    model_tuned: Path = option(help="The tuned model.")
    output_file: Path = option(help="The LoRA that leads from the first to the second.")
    dim: int = option(32, help="Rank of every layer; with energy the highest that a layer may get.", ge=1)
    energy: float | None = option(
        None,
        help="Keep this share of each layer's difference, measured by the norm, with as low a rank as "
        "that takes.",
        ge=0.0,
        le=1.0,
    )
    clamp_quantile: float | None = option(
        None,
        help="Limit the numbers of each layer to this quantile of their size, e.g. 0.99. Off by default: it "
        "cuts the largest, which matter most.",
        ge=0.0,
        le=1.0,
        advanced=True,
    )
    min_diff: float = option(
        1e-6,
        help="Leave out layers whose difference is smaller than this share of the weights.",
        ge=0.0,
        advanced=True,
    )
    with_diff: bool = option(
        False, help="Also store the differences of biases and norms, whole, as ComfyUI reads them."
    )
    plot: Path | None = option(None, help="Also draw the singular values of each kind of layer, as a PNG.")
    architecture: str | None = option(None, help="Model family, where the files cannot tell.", advanced=True)
    save_precision: str = option("fp16", help="Number format of the LoRA.", choices=PRECISIONS)

    def check(self) -> None:
        """Raises ConfigError for paths that make no sense."""
        if self.output_file.suffix.lower() != ".safetensors":
            raise ConfigError(f"output_file is {self.output_file}; give a name that ends in .safetensors.")
        if self.model_org.resolve() == self.model_tuned.resolve():
            raise ConfigError(
                "model_org and model_tuned are the same file; there is no difference to extract."
            )
        if self.output_file.resolve() in {self.model_org.resolve(), self.model_tuned.resolve()}:
            raise ConfigError(f"{self.output_file} is one of the models. Give another output_file.")
