"""What a drawing starts from: noise, and the first frame for networks that see one."""

from __future__ import annotations

import torch
from torch import Tensor

from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import EncodedPictures, GivenPictures, LatentCodec, Pixels


def noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(C, F, H, W), drawn frame by frame: a longer clip from the same seed begins with the same noise."""
    channels, frames, height, width = size
    drawn = [torch.randn((channels, 1, height, width), generator=generator) for _ in range(frames)]
    return torch.cat(drawn, dim=1)


def encode_pictures(codec: LatentCodec, given: GivenPictures, options: TrainOptions) -> EncodedPictures:
    """latents_image (C, 1, h, w), as the cache of a picture would hold it, not scaled."""
    if given.image is None:
        return EncodedPictures()
    (found,) = codec.encode(Pixels(frames=given.image[None, None], seeds=[given.seed]))
    return EncodedPictures(tensors={"latents_image": found["latents"]})
