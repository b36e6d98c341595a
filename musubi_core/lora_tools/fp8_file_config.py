"""Options of `quantize-fp8`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.quantization.config import SchemeOptions
from musubi_core.quantization.scheme import Scheme

DEFAULT_GRANULARITY = {"musubi": "block", "comfyui": "tensor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8FileConfig:
    """Which model is written with 8-bit weights, and for which program."""

    input: Path = option(help="The model: bf16, fp16 or fp32, a file or a folder of shards.")
    output: Path = option(help="The new file (.safetensors), about half the size of a bf16 model.")
    target: str = option(
        "musubi",
        help="musubi: for --fp8_scaled, which then only reads it; scales for blocks of 64, the most exact. "
        "comfyui: for ComfyUI's own loader, one scale per weight.",
        choices=tuple(DEFAULT_GRANULARITY),
    )
    architecture: str | None = option(
        None, help="The model family of the input. Needed only where the file cannot tell."
    )
    device: str | None = option(
        None, help="Where the weights are rounded, e.g. cuda or cpu. Default: the GPU when there is one."
    )
    upcast_fp8: bool = option(
        False,
        help="Take an input that is fp8 already. Its weights are rounded a second time, so a bf16 file is "
        "better.",
        advanced=True,
    )
    scheme: SchemeOptions

    def as_scheme(self) -> Scheme:
        return self.scheme.scheme(DEFAULT_GRANULARITY[self.target])

    def check(self) -> None:
        """Raises ConfigError for an output that cannot be meant, or that ComfyUI could not load."""
        if self.output.suffix.lower() != ".safetensors":
            raise ConfigError(f"output is {self.output}; give a name that ends in .safetensors.")
        if self.output.resolve() == self.input.resolve():
            raise ConfigError(f"output is the input itself, {self.input}. Give another name.")
        if self.target == "comfyui" and self.as_scheme().granularity != "tensor":
            raise ConfigError(
                f"ComfyUI loads fp8 weights with one scale each, not one per {self.scheme.fp8_granularity}. "
                "Leave out --fp8_granularity, or use --target musubi."
            )
