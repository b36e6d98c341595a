"""Sizes of a HunyuanVideo network, as `detect` reads them from a file."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanVideoConfig:
    """Everything that shapes the network. The defaults are the released text-to-video model.

    in_channels is 16 for text-to-video and 32 for SkyReels image-to-video. guidance: the network takes an
    embedded guidance scale, as the cfg-distilled release does.
    """

    hidden: int = 3072
    heads: int = 24
    double_blocks: int = 20
    single_blocks: int = 40
    refiner_blocks: int = 2
    mlp_width: int = 12288
    in_channels: int = 16
    out_channels: int = 16
    text_width: int = 4096
    pooled_width: int = 768
    guidance: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden % self.heads:
            raise ConfigError(f"A hidden size of {self.hidden} does not divide into {self.heads} heads.")
        if self.head_size < 32 or self.head_size % 32:
            raise ConfigError(
                f"The attention heads are {self.head_size} wide; rotary positions of frames, rows and "
                "columns need a multiple of 32."
            )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Channels of a head that carry frame, row and column: an eighth, the rest in two halves."""
        frame = self.head_size // 8
        side = (self.head_size - frame) // 2
        return frame, side, side
