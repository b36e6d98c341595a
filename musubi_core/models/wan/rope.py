"""Rotary positions of video tokens: frame, row and column, each in its own part of a head."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Rope: TypeAlias = tuple[Tensor, Tensor]  # cosines, sines, each (1 or B, L, d / 2) float32

THETA = 10000.0
POSITIONS = 1024  # per axis, as in the original network


def axis_tables(axes: tuple[int, int, int], device: torch.device) -> tuple[Rope, Rope, Rope]:
    """Cosines and sines, (POSITIONS, width / 2) each, for the frames, rows and columns.

    Axis a of width w turns its pair k by position * THETA ** (-2k / w). Angles are computed in float64 on
    the CPU, because not every device knows it.
    """
    tables = []
    for width in axes:
        pairs = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
        positions = torch.arange(POSITIONS, dtype=torch.float64, device="cpu")
        angles = positions[:, None] * THETA ** (-pairs / width)
        tables.append((angles.cos().float().to(device), angles.sin().float().to(device)))
    frames, rows, columns = tables
    return frames, rows, columns


def rope_table(
    tables: tuple[Rope, Rope, Rope], size: tuple[int, int, int], frame_positions: Tensor | None = None
) -> Rope:
    """The table for `size` = (frames, rows, columns) of tokens, in that order of nesting.

    frame_positions: (B, frames) whole numbers, the time of each frame; None counts from 0 in every sample.
    """
    joined = []
    for kind in range(2):  # cosines, sines
        frames, rows, columns = (table[kind] for table in tables)
        own = frames[: size[0]][None] if frame_positions is None else frames[frame_positions]
        shape = (len(own), *size)
        parts = (
            own[:, :, None, None].expand(*shape, -1),
            rows[: size[1]][:, None].expand(*shape, -1),
            columns[: size[2]].expand(*shape, -1),
        )
        joined.append(torch.cat(parts, dim=-1).flatten(1, 3))
    return joined[0], joined[1]


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring channel pairs. x: (B, L, n, d) -> the same shape and dtype; the turn is float32."""
    cos, sin = (part.unsqueeze(2) for part in rope)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
