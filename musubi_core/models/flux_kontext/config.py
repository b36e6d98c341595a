"""Sizes of a FLUX.1 network, as `detect` reads them from a file."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.errors import ConfigError

PATCH = 4  # latent cells per token: two rows by two columns


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxKontextConfig:
    """Everything that shapes the network. The defaults are FLUX.1 dev and Kontext, which are the same.

    channels: of a latent; a token holds PATCH cells of it.
    """

    hidden: int = 3072
    heads: int = 24
    double_blocks: int = 19
    single_blocks: int = 38
    mlp_width: int = 12288
    channels: int = 16
    text_width: int = 4096
    pooled_width: int = 768

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden % self.heads:
            raise ConfigError(f"A hidden size of {self.hidden} does not divide into {self.heads} heads.")
        if self.head_size < 32 or self.head_size % 32:
            raise ConfigError(
                f"The attention heads are {self.head_size} wide; rotary positions of pictures, rows and "
                "columns need a multiple of 32."
            )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Channels of a head that carry picture, row and column: an eighth, the rest in two halves."""
        picture = self.head_size // 8
        side = (self.head_size - picture) // 2
        return picture, side, side
