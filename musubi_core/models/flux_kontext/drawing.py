"""What a drawing starts from: noise, and the pictures to edit or to refer to."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from musubi_core.models.flux_kontext.model import unpack
from musubi_core.models.flux_kontext.options import TrainOptions
from musubi_core.models.flux_kontext.vae import VaeCodec
from musubi_core.models.spec import EncodedPictures, GivenPictures, LatentCodec


def noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(C, h, w), drawn token by token, as musubi-tuner does: equal seeds give equal noise."""
    channels, height, width = size
    tokens = (height + 1) // 2 * ((width + 1) // 2)
    drawn = torch.randn((1, tokens, channels * 4), generator=generator)
    return unpack(drawn, (height, width))[0]


def encode_pictures(codec: LatentCodec, given: GivenPictures, options: TrainOptions) -> EncodedPictures:
    """latents_control (C, h, w) of the first control picture, latents_control_1 of the second, ..."""
    vae = cast(VaeCodec, codec)
    controls = [[picture[None]] for picture in given.control_images]
    found = vae.encode_controls(controls)
    return EncodedPictures(tensors={name: tensor[0] for name, tensor in found.items()})
