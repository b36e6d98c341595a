"""Which measured magnitude ratios fit a clip: the published ones are of two sizes."""

from __future__ import annotations

from collections.abc import Collection

from musubi_core.models.hunyuan_video.options import TrainOptions

LARGE = 10840  # latent cells: half way, as a factor, from 960x544 to 1280x720
TEXT_CHANNELS = 16  # of a network that is shown no first frame


def ratios_for(options: TrainOptions, given: Collection[str], size: tuple[int, int]) -> str:
    """Their name: "t2v-720p", "t2v-544p", or the same with i2v for networks that are shown a first frame."""
    kind = "t2v" if options.dit_in_channels == TEXT_CHANNELS else "i2v"
    return f"{kind}-{'720p' if size[0] * size[1] > LARGE else '544p'}"
