"""Options of 8-bit weights. Imports no torch: the command line is built from them."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.quantization.scheme import FORMATS, GRANULARITIES, QuantisationConfig, Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeOptions:
    """Which weights share a scale, and the format of the codes."""

    fp8_format: str = option(
        "e4m3",
        help="Number format of fp8 weights. e4m3 has half the rounding error of e5m2.",
        choices=FORMATS,
        advanced=True,
    )
    fp8_granularity: str | None = option(
        None,
        help="Weights that share a scale: a block of a row, a whole row (channel), or the whole tensor. "
        "Finer is more exact. Default: block; a row where blocks do not fit.",
        choices=GRANULARITIES,
        advanced=True,
    )
    fp8_block_size: int = option(
        64, help="Weights in a block that share a scale.", ge=16, le=1024, advanced=True
    )

    def scheme(self, default: str = "block") -> Scheme:
        """default: the granularity when the user named none."""
        return Scheme(
            format=self.fp8_format, granularity=self.fp8_granularity or default, block=self.fp8_block_size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Options:
    """Whether the frozen base model is kept in 8 bits while a LoRA is trained."""

    fp8_base: bool = option(
        False,
        help="Keep the large weights of the base model in 8 bits: half the memory. Add --fp8_scaled, which "
        "costs nothing and is more exact.",
    )
    fp8_scaled: bool = option(
        False,
        help="Give the 8-bit weights of --fp8_base scales, which keeps them closer to the model. The file "
        "must be fp16, bf16 or fp32, or made by musubi quantize-fp8.",
    )
    fp8_fast: bool = option(
        False,
        help="Multiply in fp8 on cards that can (RTX 40, H100 and later): faster, but activations are "
        "rounded too. Needs --fp8_scaled with --fp8_granularity channel or tensor.",
        advanced=True,
    )
    upcast_fp8: bool = option(
        False,
        help="Let --fp8_scaled take a file that is fp8 already. Its weights are rounded a second time, so a "
        "bf16 file is better.",
        advanced=True,
    )
    scheme: SchemeOptions

    def check(self) -> None:
        """Raises ConfigError for options that contradict each other or would do nothing."""
        if self.fp8_scaled and not self.fp8_base:
            raise ConfigError("--fp8_scaled needs --fp8_base, as in musubi-tuner. Add --fp8_base.")
        if self.fp8_scaled:
            if self.fp8_fast and self.scheme.scheme().granularity == "block":
                raise ConfigError(
                    "--fp8_fast needs one scale per row or per tensor; blocks cannot be multiplied in fp8. "
                    "Add --fp8_granularity channel."
                )
            return
        idle = [f"--{name}" for name in ("fp8_fast", "upcast_fp8") if getattr(self, name)]
        idle += [] if self.scheme == SchemeOptions() else ["a format, granularity or block size of fp8"]
        if idle:
            raise ConfigError(
                f"{idle[0]} has no effect without scaled fp8 weights. Add --fp8_base --fp8_scaled, or leave "
                "it out."
            )

    def request(
        self, *, targets: tuple[str, ...], keep_precise: tuple[str, ...], architecture: str
    ) -> QuantisationConfig | None:
        """What to ask of a loader; None when weights stay as they are.

        targets, keep_precise: the architecture's own lists. Raises ConfigError when it has no targets.
        """
        if not self.fp8_base:
            return None
        if not targets:
            raise ConfigError(f"--fp8_base is not available for {architecture}. Leave it out.")
        return QuantisationConfig(
            targets=targets,
            keep_precise=keep_precise,
            scheme=self.scheme.scheme() if self.fp8_scaled else None,
            upcast_fp8=self.upcast_fp8,
            fast=self.fp8_fast,
        )
