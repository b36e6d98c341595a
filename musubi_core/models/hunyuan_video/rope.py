"""Rotary positions of image tokens: frame, row and column, each in its own part of a head."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Rope: TypeAlias = tuple[Tensor, Tensor]  # cosines, sines, each (L_img, d / 2) float32

THETA = 256.0


def rope_table(size: tuple[int, int, int], axes: tuple[int, int, int], device: torch.device) -> Rope:
    """The table for `size` = (frames, rows, columns) of tokens, in that order of nesting.

    Axis a of width w turns its pair k by position * THETA ** (-2k / w). L_img is the product of `size`.
    """
    parts = []
    for axis, (length, width) in enumerate(zip(size, axes, strict=True)):
        positions = torch.arange(length, dtype=torch.float32, device=device)
        pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
        angles = positions[:, None] * THETA ** (-pairs / width)
        shape = [1, 1, 1, width // 2]
        shape[axis] = length
        parts.append(angles.view(shape).expand(*size, -1))
    joined = torch.cat(parts, dim=-1).flatten(0, 2)
    return joined.cos(), joined.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring channel pairs of the first L_img tokens; later tokens (text) stay.

    x: (B, L, n, d) -> the same shape and dtype. The turn itself is float32.
    """
    cos, sin = (part[None, :, None, :] for part in rope)
    length = cos.shape[1]
    even, odd = x[:, :length].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
    return turned if length == x.shape[1] else torch.cat([turned, x[:, length:]], dim=1)
