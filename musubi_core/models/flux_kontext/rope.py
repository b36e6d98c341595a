"""Where every image token stands: picture, row and column, each in its own part of a head.

The target is picture 0. Text has position (0, 0, 0), which turns nothing, so it is left out of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Rope: TypeAlias = tuple[Tensor, Tensor]  # cosines, sines, each (L_img, d / 2) float32
Size: TypeAlias = tuple[int, int]  # rows, columns of a latent

THETA = 10000.0
PLACEMENTS = ("offset", "index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One picture on the position grid, in tokens."""

    picture: int
    top: int
    left: int
    rows: int
    columns: int


def places(target: Size, references: Sequence[Size], placement: str) -> tuple[Place, ...]:
    """The target and its references, in the order of their tokens.

    One reference is picture 1 and starts at (0, 0) like the target. Of several, "index" makes the next one
    picture 2, 3, ...; "offset" keeps all of them in picture 1, each beside or below the ones before it,
    whichever keeps their common frame smaller. These are ComfyUI's two ways of placing several pictures.
    """
    found = [_place(target, picture=0, top=0, left=0)]
    height = width = 0  # of the frame around the references so far, in latent cells
    for number, (rows, columns) in enumerate(references):
        if placement == "index":
            found.append(_place((rows, columns), picture=number + 1, top=0, left=0))
            continue
        beside = rows + height > columns + width
        top, left = (0, width) if beside else (height, 0)
        found.append(_place((rows, columns), picture=1, top=top, left=left))
        height, width = max(height, top + rows), max(width, left + columns)
    return tuple(found)


def rope_table(where: Sequence[Place], axes: tuple[int, int, int], device: torch.device) -> Rope:
    """The table of all tokens, place by place and row by row.

    Axis a of width w turns its pair k by position * THETA ** (-2k / w).
    """
    joined = torch.cat([_angles(place, axes) for place in where])
    return joined.cos().float().to(device), joined.sin().float().to(device)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring channel pairs of the last L_img tokens; earlier tokens (text) stay.

    x: (B, L, n, d) -> the same shape and dtype. The turn itself is float32.
    """
    cos, sin = (part[None, :, None, :] for part in rope)
    first = x.shape[1] - cos.shape[1]
    even, odd = x[:, first:].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
    return turned if first == 0 else torch.cat([x[:, :first], turned], dim=1)


def _place(size: Size, *, picture: int, top: int, left: int) -> Place:
    """Latent cells to tokens: two by two, an odd last row or column makes a token of its own."""
    rows, columns = size
    return Place(
        picture=picture,
        top=(top + 1) // 2,
        left=(left + 1) // 2,
        rows=(rows + 1) // 2,
        columns=(columns + 1) // 2,
    )


def _angles(place: Place, axes: tuple[int, int, int]) -> Tensor:
    """(rows * columns, d / 2) float64."""
    starts, lengths = (place.picture, place.top, place.left), (1, place.rows, place.columns)
    parts = []
    for axis, (start, length, width) in enumerate(zip(starts, lengths, axes, strict=True)):
        positions = torch.arange(start, start + length, dtype=torch.float64)
        pairs = torch.arange(0, width, 2, dtype=torch.float64)
        shape = [1, 1, 1, width // 2]
        shape[axis] = length
        angles = positions[:, None] * THETA ** (-pairs / width)
        parts.append(angles.view(shape).expand(*lengths, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)
