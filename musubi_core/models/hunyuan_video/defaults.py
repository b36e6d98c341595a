"""How clips are usually drawn, and with SkyReels' image-to-video network. No torch."""

from __future__ import annotations

from musubi_core.models.hunyuan_video.colours import COLOURS
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import SamplingDefaults, TakenPictures

IMAGE_CHANNELS = 32  # of a network that sees the first frame
# The official programs' words for networks that are guided by a negative prompt.
NEGATIVE = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad "
    "teeth, bad eyes, bad limbs, distortion"
)
USUAL = SamplingDefaults(
    steps=50,
    shift=7.0,
    guidance=6.0,
    frames=129,
    fps=24.0,
    colours=COLOURS,
    pictures=TakenPictures(video=(0, 1)),
)
WITH_IMAGE = SamplingDefaults(
    steps=50,
    shift=7.0,
    guidance=1.0,
    cfg_scale=6.0,
    negative_prompt=NEGATIVE,
    frames=129,
    fps=24.0,
    colours=COLOURS,
    pictures=TakenPictures(image=(0, 1), video=(0, 1)),
)


def sampling_for(options: TrainOptions) -> SamplingDefaults:
    return WITH_IMAGE if options.dit_in_channels == IMAGE_CHANNELS else USUAL
