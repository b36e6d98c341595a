"""IMAGE tensors of ComfyUI and PIL pictures of the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_image(picture: Any) -> Tensor:
    """A PIL picture, or a (H, W, 3) uint8 array, as an IMAGE: (1, H, W, 3) float32 in 0..1."""
    array = np.array(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    return torch.from_numpy(array).float().div(255)[None]


def as_picture(image: Tensor) -> Any:
    """One (H, W, 3) IMAGE as a PIL picture."""
    from PIL import Image

    return Image.fromarray(image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()[..., :3])


def as_batch(pictures: Sequence[Any]) -> Tensor:
    """Pictures of any sizes as one IMAGE batch, each centred on a black canvas as large as the largest."""
    images = [as_image(picture)[0] for picture in pictures]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    batch = torch.zeros(len(images), height, width, 3)
    for place, image in zip(batch, images, strict=True):
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        place[top : top + image.shape[0], left : left + image.shape[1]] = image
    return batch
