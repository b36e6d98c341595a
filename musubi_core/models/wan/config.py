"""Sizes of a Wan network, as `detect` reads them from a file."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.errors import ConfigError

HEAD_SIZE = 128  # of every released network; no shape in a file tells it
TIME_WAVES = 256  # sines and cosines that a noise level is given as


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What goes in and out of a network, as far as a file tells.

    in_channels: noisy latents and what stands beside them. pictures: it has a branch for features of CLIP.
    two_pictures: of a first and a last frame, which it tells apart.
    """

    in_channels: int = 16
    out_channels: int = 16
    pictures: bool = False
    two_pictures: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WanConfig:
    """Everything that shapes the network. The defaults are the text-to-video model of 14 billion numbers.

    picture_width: of CLIP's features, 0 for a network without a branch for them. picture_tokens: how many of
    them have learned positions (514 for first and last frame), 0 for none.
    """

    hidden: int = 5120
    heads: int = 40
    layers: int = 40
    mlp_width: int = 13824
    in_channels: int = 16
    out_channels: int = 16
    text_width: int = 4096
    picture_width: int = 0
    picture_tokens: int = 0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden % self.heads:
            raise ConfigError(f"A hidden size of {self.hidden} does not divide into {self.heads} heads.")
        if self.head_size < 6 or self.head_size % 2:
            raise ConfigError(
                f"The attention heads are {self.head_size} wide; rotary positions of frames, rows and "
                "columns need an even number of at least 6."
            )
        if self.picture_tokens and not self.picture_width:
            raise ConfigError("It has positions of picture features, but no branch that takes them.")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Channels of a head that carry frame, row and column: a third each, what is left over to frames."""
        side = 2 * (self.head_size // 6)
        return self.head_size - 2 * side, side, side

    @property
    def layout(self) -> Layout:
        return Layout(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            pictures=self.picture_width > 0,
            two_pictures=self.picture_tokens > 0,
        )
