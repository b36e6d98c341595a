"""Options of `ema-merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig:
    """Which checkpoints are averaged, and with which weights."""

    path: tuple[Path, ...] = option(help="LoRA files of one run, in any order.")
    output_file: Path = option(
        help="The averaged LoRA. With several values, each is put in a name of its own."
    )
    beta: tuple[float, ...] = option(
        (0.95,),
        help="How much of the average is kept at each merge. Near 1 keeps the oldest file. Several values "
        "write several files.",
        ge=0.0,
        le=1.0,
    )
    beta2: float | None = option(
        None, help="Go from beta to this value over the merges, in a straight line.", ge=0.0, le=1.0
    )
    sigma_rel: tuple[float, ...] = option(
        (),
        help="Relative width of a power-function average (0.05 to 0.25) instead of beta. Several values "
        "write several files.",
        ge=1e-3,
        le=0.5,
    )
    weighting: str = option(
        "counted",
        help="What sigma_rel counts. counted: the files, as musubi-tuner does; the oldest gets no weight. "
        "steps: the training steps recorded in them. stored: least squares over the running averages that "
        "training kept with --ema_sigma_rel.",
        choices=("counted", "steps", "stored"),
        advanced=True,
    )
    at_step: int | None = option(
        None, help="With weighting stored: the training step of the average. Default: the last.", ge=1
    )
    average: str = option(
        "factors",
        help="factors: average the LoRA's matrices, as musubi-tuner does. delta: average what they do to the "
        "model and factor it again, which is exact for runs that drifted apart.",
        choices=("factors", "delta"),
        advanced=True,
    )
    rank: int | None = option(
        None, help="With average delta: rank of the result. Default: that of the files.", ge=1, advanced=True
    )
    no_sort: bool = option(False, help="Take the files in the order given, oldest first.")

    def check(self) -> None:
        """Raises ConfigError for options that exclude each other."""
        if self.sigma_rel and self.beta2 is not None:
            raise ConfigError("beta2 has no meaning with sigma_rel. Give one of them.")
        if self.weighting != "counted" and not self.sigma_rel:
            raise ConfigError(f"weighting {self.weighting} needs --sigma_rel.")
        if self.at_step is not None and self.weighting != "stored":
            raise ConfigError("at_step is for weighting stored only.")
        if self.rank is not None and self.average != "delta":
            raise ConfigError("rank is for average delta only: averaging factors keeps their rank.")
        if self.average == "delta" and self.weighting == "stored":
            raise ConfigError(
                "Running averages are of the factors already, so average delta cannot use them. "
                "Use weighting counted or steps, or average factors."
            )
        if self.output_file.suffix.lower() != ".safetensors":
            raise ConfigError(f"output_file is {self.output_file}; give a name that ends in .safetensors.")
