"""Pictures as conditions: known frames inside an unknown clip, and what CLIP sees of a picture.

Legend: B items, F pixel frames (4k + 1), f = k + 1 latent frames, h x w latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from musubi_core.models.wan.vae_config import TEMPORAL

# Mean and deviation of red, green and blue that OpenAI's CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def with_unknown_frames(frames: Tensor, known: Sequence[int]) -> Tensor:
    """(B, 3, F, H, W) in -1..1 -> the same with every frame but the known ones set to 0, mid grey.

    known: indices of frames; negative ones count from the end.
    """
    result = torch.zeros_like(frames)
    for index in known:
        result[:, :, index] = frames[:, :, index]
    return result


def frame_mask(count: int, known: Sequence[int], *, height: int, width: int) -> Tensor:
    """(4, f, height, width): 1 where a pixel frame is known.

    count: F. The first latent frame stands for one pixel frame, four times over; each other one for four,
    one per channel. So the last pixel frame of a clip is channel 3 of its last latent frame.
    """
    frames = torch.zeros(count)
    frames[list(known)] = 1
    folded = torch.cat([frames[:1].expand(TEMPORAL), frames[1:]]).reshape(-1, TEMPORAL).T
    return folded[:, :, None, None].expand(-1, -1, height, width).contiguous()


def clip_input(picture: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) in -1..1 -> (B, 3, size, size) as CLIP ViT-H wants it.

    The whole picture is squeezed into the square, whatever its shape, without smoothing: Wan was trained so.
    """
    square = functional.interpolate(
        picture.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=False
    )
    mean, std = torch.tensor([CLIP_MEAN, CLIP_STD], device=picture.device).view(2, 1, 3, 1, 1)
    return (square * 0.5 + 0.5 - mean) / std
