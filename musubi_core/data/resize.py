"""Resizing and cropping of 8-bit pictures (H, W, C) to the size of a bucket.

Enlarging uses PIL's Lanczos filter. Shrinking averages exactly the area that each new pixel covers, as
OpenCV's INTER_AREA does, with which musubi-tuner makes its caches; OpenCV itself is not needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels8 = NDArray[np.uint8]


def resize_and_crop(picture: Pixels8, width: int, height: int) -> Pixels8:
    """(H, W, C) uint8 -> (height, width, C): scaled until it covers the target, then cut at the centre."""
    old_height, old_width = picture.shape[:2]
    if (old_width, old_height) == (width, height):
        return picture
    scale = max(width / old_width, height / old_height)
    new_width, new_height = int(old_width * scale + 0.5), int(old_height * scale + 0.5)
    left, top = (new_width - width) // 2, (new_height - height) // 2
    if scale > 1:
        enlarged = _lanczos(picture, new_width, new_height)
        return np.ascontiguousarray(enlarged[top : top + height, left : left + width])
    return _average(picture, (new_width, new_height), (left, top, width, height))


def _average(picture: Pixels8, size: tuple[int, int], crop: tuple[int, int, int, int]) -> Pixels8:
    """(H, W, C) uint8 -> (height, width, C) uint8: shrunk to `size`, of which `crop` is wanted.

    size: (width, height). crop: (left, top, width, height). Rounded half to even.
    """
    old_height, old_width, channels = picture.shape
    left, top, width, height = crop
    flat = _average_lines(picture.reshape(old_height, -1), old_height / size[1], top, height)  # (h, W * C)
    sideways = np.ascontiguousarray(flat.reshape(height, old_width, channels).transpose(1, 0, 2))
    small = _average_lines(sideways.reshape(old_width, -1), old_width / size[0], left, width)  # (w, h * C)
    rounded = np.clip(np.rint(small), 0, 255).astype(np.uint8).reshape(width, height, channels)
    return np.ascontiguousarray(rounded.transpose(1, 0, 2))


def _average_lines(lines: NDArray[Any], scale: float, first: int, count: int) -> NDArray[np.float32]:
    """(L, M) -> (count, M): the average of the old lines that each new line covers, from new line `first` on.

    scale: old lines per new line, at least 1. Sums of whole lines, plus the covered shares of those at both
    ends. Not a matrix product: its threads would take the processor from the VAE while media are read ahead
    (measured on two cores: it made the whole caching job a fifth slower).
    """
    edges = np.arange(first, first + count + 1) * scale
    whole = np.minimum(edges.astype(np.intp), len(lines) - 1)
    shares = (edges - whole).astype(np.float32)
    averages = np.empty((count, lines.shape[1]), np.float32)
    for number, row in enumerate(averages):
        start, stop = whole[number], whole[number + 1]
        np.add.reduce(lines[start:stop], axis=0, dtype=np.float32, out=row)
        row -= shares[number] * lines[start]
        row += shares[number + 1] * lines[stop]
    averages /= np.float32(scale)
    return averages


def _lanczos(picture: Pixels8, width: int, height: int) -> Pixels8:
    from PIL import Image

    # PIL weighs colours by their alpha here, as in musubi-tuner
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
