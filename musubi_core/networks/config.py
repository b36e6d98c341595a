"""The options of the adapters. Imports no torch: the command line is built from this file."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import build, nearest, option, parse_key_values
from musubi_core.errors import ConfigError

DEFAULT_DIM = 4
KEY_FORMATS = ("comfyui", "musubi")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkArgs:
    """What `--network_args` may say. Same names as in musubi-tuner."""

    conv_dim: int | None = option(
        None,
        ge=1,
        help="Rank of adapters on convolutions whose kernel is larger than 1. Not set: they get none.",
    )
    conv_alpha: float | None = option(1.0, ge=0, help="Alpha of those adapters; 0 means alpha = conv_dim.")
    rank_dropout: float = option(
        0.0, ge=0, le=0.99, help="Chance that a rank is switched off for one item of a batch."
    )
    module_dropout: float = option(
        0.0, ge=0, le=0.99, help="Chance that an adapter is left out for one training step."
    )
    exclude_patterns: tuple[str, ...] = option(
        (),
        help="List of regular expressions. A layer whose whole dotted name matches one gets no adapter.",
    )
    include_patterns: tuple[str, ...] = option(
        (),
        help="List of regular expressions that bring back excluded layers. To train only the layers named "
        "here, also set exclude_patterns=[r'.*'].",
    )
    loraplus_lr_ratio: float | None = option(
        None, ge=0, help="LoRA+: the up matrices learn this many times faster; 4 is a good start."
    )
    verbose: bool = option(False, help="Show every layer with its rank, or why it gets no adapter.")

    def check(self) -> None:
        """Raises ConfigError for a broken regular expression or options that contradict each other."""
        compile_patterns(self.exclude_patterns, where="network_args exclude_patterns")
        compile_patterns(self.include_patterns, where="network_args include_patterns")
        if self.loraplus_lr_ratio == 0:
            raise ConfigError(
                "network_args: loraplus_lr_ratio = 0 would never train the up matrices, so nothing at all. "
                "Leave it out to train both matrices at the same rate."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Which adapters are trained, and from where they start."""

    network_module: str = option(
        "networks.lora", help="Kind of network to train, by musubi-tuner's name: networks.lora is LoRA."
    )
    network_dim: int | None = option(
        None, ge=1, help="Rank of the adapters: higher learns more and makes larger files. Not set: 4."
    )
    network_alpha: float | None = option(
        1.0,
        ge=0,
        help="Strength of the adapters is alpha / rank. 0 means alpha = rank, that is strength 1.",
    )
    network_dropout: float | None = option(
        None, ge=0, le=0.99, help="Chance that a number between the two LoRA matrices is dropped in training."
    )
    network_args: tuple[str, ...] = option(
        (), help="More settings as key=value, e.g. conv_dim=4 or \"exclude_patterns=[r'.*single.*']\"."
    )
    network_weights: Path | None = option(
        None, help="LoRA file to start from. Its ranks must agree, or set dim_from_weights."
    )
    dim_from_weights: bool = option(
        False, help="Take the layers, ranks and alphas from the file given as network_weights."
    )
    base_weights: tuple[Path, ...] = option(
        (), help="LoRA files that are merged into the model before training; they are not trained."
    )
    base_weights_multiplier: tuple[float, ...] = option(
        (), help="Strength of each file in base_weights; 1 where none is given."
    )
    scale_weight_norms: float | None = option(
        None, ge=0, help="Shrink an adapter whose norm exceeds this after a step; 1 is a good start. 0 = off."
    )
    lora_key_format: str = option(
        "comfyui",
        choices=KEY_FORMATS,
        help='Names inside the saved LoRA: "comfyui" loads in ComfyUI completely, "musubi" keeps '
        "musubi-tuner's names, of which ComfyUI ignores some for some models.",
    )

    @property
    def rank(self) -> int:
        return self.network_dim or DEFAULT_DIM

    def arguments(self) -> NetworkArgs:
        """network_args, read and checked. Raises ConfigError with the nearest key for an unknown one."""
        values = parse_key_values(self.network_args, where="network_args")
        for key in ("exclude_patterns", "include_patterns"):
            _refuse_broken_list(key, values.get(key))
        arguments = build(NetworkArgs, values, where="network_args")
        if "conv_alpha" in values and arguments.conv_dim is None:
            raise ConfigError("network_args: conv_alpha is given without conv_dim. Set conv_dim as well.")
        arguments.check()
        return arguments

    def base_files(self) -> tuple[tuple[Path, float], ...]:
        """Each file of base_weights with its multiplier."""
        missing = len(self.base_weights) - len(self.base_weights_multiplier)
        return tuple(zip(self.base_weights, (*self.base_weights_multiplier, *[1.0] * missing), strict=True))

    def check(self, *, network_modules: Collection[str]) -> None:
        """Raises ConfigError for what can be refused before anything is loaded.

        network_modules: the accepted values of network_module.
        """
        if self.network_module not in network_modules:
            near = nearest(self.network_module, network_modules, count=1) or sorted(network_modules)
            raise ConfigError(
                f"network_module {self.network_module!r} is not a kind of network that this architecture can "
                f"train. Use {' or '.join(near)}."
            )
        arguments = self.arguments()
        if self.dim_from_weights:
            self._check_dim_from_weights(arguments)
        if len(self.base_weights_multiplier) > len(self.base_weights):
            raise ConfigError(
                f"base_weights_multiplier has {len(self.base_weights_multiplier)} numbers for "
                f"{len(self.base_weights)} files in base_weights. Give one number per file."
            )
        for name, paths in (("network_weights", [self.network_weights]), ("base_weights", self.base_weights)):
            for path in paths:
                if path is not None and not path.is_file():
                    raise ConfigError(f"{name}: {path} is not a file. Give the path of a LoRA file.")

    def _check_dim_from_weights(self, arguments: NetworkArgs) -> None:
        if self.network_weights is None:
            raise ConfigError(
                "dim_from_weights takes the ranks from a file, but network_weights names none. "
                "Set network_weights, or remove dim_from_weights."
            )
        given = {
            "network_dim": self.network_dim,
            "conv_dim": arguments.conv_dim,
            "exclude_patterns": arguments.exclude_patterns,
            "include_patterns": arguments.include_patterns,
        }
        clashing = [name for name, value in given.items() if value]
        if clashing:
            raise ConfigError(
                f"dim_from_weights lets {self.network_weights} decide which layers are trained and at which "
                f"rank, so {', '.join(clashing)} would be ignored. Remove one or the other."
            )


def compile_patterns(patterns: Collection[str], *, where: str) -> tuple[re.Pattern[str], ...]:
    """Regular expressions, compiled. Raises ConfigError that names the broken one and the place."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ConfigError(
                f"{where}: {pattern!r} is not a valid regular expression: {error}. "
                r"Example: r'.*single_blocks\.\d+\.linear1'."
            ) from None
    return tuple(compiled)


def _refuse_broken_list(key: str, value: object) -> None:
    """A list that lost its quotes is still text, and "[...]" is a valid pattern for one single letter."""
    if isinstance(value, str) and value.startswith("["):
        raise ConfigError(
            f"network_args: {key}={value} is not a list of quoted texts. "
            f"Write \"{key}=[r'.*first.*', r'.*second.*']\"."
        )
