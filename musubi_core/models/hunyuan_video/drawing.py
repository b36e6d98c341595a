"""What a drawing starts from: noise, and the first frame for networks that see one."""

from __future__ import annotations

import torch
from torch import Tensor

from musubi_core.models.hunyuan_video.inputs import LATENT_SCALE
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import EncodedPictures, GivenPictures, LatentCodec, Pixels


def noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(C, F, H, W), drawn frame by frame: a longer clip from the same seed begins with the same noise."""
    channels, frames, height, width = size
    drawn = [torch.randn((channels, 1, height, width), generator=generator) for _ in range(frames)]
    return torch.cat(drawn, dim=1)


def encode_pictures(codec: LatentCodec, given: GivenPictures, options: TrainOptions) -> EncodedPictures:
    """latents_image (C, 1, h, w), as the cache of a picture would hold it; a clip to begin with."""
    start = None if given.video is None else _latents(codec, given.video, given.seed) * LATENT_SCALE
    if given.image is None:
        return EncodedPictures(start=start)
    return EncodedPictures(
        tensors={"latents_image": _latents(codec, given.image[None], given.seed)}, start=start
    )


def _latents(codec: LatentCodec, frames: Tensor, seed: int) -> Tensor:
    """(F, H, W, 3) uint8 -> (C, f, h, w), not scaled."""
    (found,) = codec.encode(Pixels(frames=frames[None], seeds=[seed]))
    return found["latents"].float().cpu()
