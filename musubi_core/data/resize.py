"""Resizing and cropping of 8-bit pictures (H, W, C) to the size of a bucket.

Enlarging uses PIL's Lanczos filter. Shrinking averages exactly the area that each new pixel covers, as
OpenCV's INTER_AREA does, with which musubi-tuner makes its caches; OpenCV itself is not needed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels8 = NDArray[np.uint8]
BLOCK = 32  # output lines per matrix product: small enough that the band of weights is nearly dense


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
    rows = area_weights(old_height, new_height)[top : top + height]
    columns = area_weights(old_width, new_width)[left : left + width]
    return _weighted(picture, rows, columns)


@lru_cache(maxsize=64)
def area_weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old): the share of each old pixel in each new one; every row sums to 1. Needs new <= old."""
    scale = old / new
    starts = np.arange(new)[:, None] * scale
    pixels = np.arange(old)[None, :]
    overlap = np.minimum(starts + scale, pixels + 1) - np.maximum(starts, pixels)
    weights = (np.clip(overlap, 0, None) / scale).astype(np.float32)
    weights.setflags(write=False)  # shared by all callers of the cache
    return weights


def _weighted(picture: Pixels8, rows: NDArray[np.float32], columns: NDArray[np.float32]) -> Pixels8:
    """rows (h, H), columns (w, W): (H, W, C) uint8 -> (h, w, C) uint8, rounded half to even."""
    channels = picture.shape[2]
    narrow = _reduce_lines(picture.reshape(picture.shape[0], -1), rows)  # (h, W * C)
    sideways = narrow.reshape(len(rows), -1, channels).transpose(1, 0, 2)  # (W, h, C)
    small = _reduce_lines(sideways.reshape(sideways.shape[0], -1), columns)  # (w, h * C)
    rounded = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.reshape(len(columns), len(rows), channels).transpose(1, 0, 2))


def _reduce_lines(lines: NDArray[Any], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """weights (n, L) @ lines (L, M) -> (n, M), reading only the lines that a block of outputs needs."""
    reduced = np.empty((len(weights), lines.shape[1]), np.float32)
    for start in range(0, len(weights), BLOCK):
        band = weights[start : start + BLOCK]
        used = np.flatnonzero(band.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        part = lines[first:last].astype(np.float32, copy=False)
        np.matmul(band[:, first:last], part, out=reduced[start : start + BLOCK])
    return reduced


def _lanczos(picture: Pixels8, width: int, height: int) -> Pixels8:
    from PIL import Image

    # PIL weighs colours by their alpha here, as in musubi-tuner
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
