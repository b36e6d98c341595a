"""Which network is trained, and how it computes attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

ATTENTION_FLAGS = ("sdpa", "flash_attn", "xformers", "flash3", "sage_attn")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Files of the base model. Exactly one attention flag; sdpa when none is given."""

    dit: Path = option(help="The diffusion transformer: a .safetensors or .pt file, or a folder of shards.")
    vae: Path | None = option(
        None, help="The VAE. Training itself works on cached latents and does not read it."
    )
    architecture: str | None = option(
        None, help="Name of the model's architecture. Read from the file when not given."
    )
    sdpa: bool = option(False, help="Attention by PyTorch itself. This is the default.")
    flash_attn: bool = option(False, help="Attention by the flash-attn library, which must be installed.")
    xformers: bool = option(False, help="Attention by the xformers library, which must be installed.")
    flash3: bool = option(
        False, help="Attention by FlashAttention 3, which must be installed.", advanced=True
    )
    sage_attn: bool = option(
        False,
        help="Attention by SageAttention. It has no backward pass, so training refuses it.",
        advanced=True,
    )
    split_attn: bool = option(
        False,
        help="Compute attention one sample at a time: a little slower, less memory for batches.",
        advanced=True,
    )

    @property
    def attention(self) -> str:
        """The one attention that was asked for, by its flag."""
        return next((flag for flag in ATTENTION_FLAGS if getattr(self, flag)), "sdpa")

    def check(self) -> None:
        """Raises ConfigError for several attention flags, or one that cannot train."""
        given = [f"--{flag}" for flag in ATTENTION_FLAGS if getattr(self, flag)]
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} are given; attention is computed one way only. Keep one."
            )
        if self.sage_attn:
            raise ConfigError(
                "--sage_attn cannot train: SageAttention has no backward pass. Use --sdpa or --flash_attn."
            )
