"""Pictures side by side, with words above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def labelled_grid(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str],
    row_titles: Sequence[str],
    cell: int = 192,
) -> Image:
    """A table of pictures. rows: (H, W, 3) uint8 each, fitted into square cells without distortion.

    Raises ValueError when the titles do not count the same as rows and columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(rows) != len(row_titles) or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{len(rows)} rows, {len(row_titles)} row titles, {len(columns)} column titles")
    head, pad, line = 28, 8, 22
    width = pad + (cell + pad) * len(columns)
    sheet = Image.new("RGB", (width, head + (cell + pad + line) * len(rows)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, title in enumerate(columns):
        draw.text((pad + (cell + pad) * index, 6), title, fill=(40, 44, 52), font=font)
    for down, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = head + (cell + pad + line) * down
        draw.text((pad, top), _fitted(title, width // 8), fill=(40, 44, 52), font=font)
        for across, pixels in enumerate(row):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            scale = min(cell / picture.width, cell / picture.height)
            size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
            resized = picture.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(resized, (pad + (cell + pad) * across, top + line))
    return sheet


def _fitted(title: str, letters: int) -> str:
    return title if len(title) <= letters else f"{title[: letters - 1].rstrip()}…"
