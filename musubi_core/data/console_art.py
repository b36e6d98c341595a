"""Pictures made of coloured letters, for terminals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musubi_core.data.resize import resize_and_crop
from musubi_core.errors import ConfigError

LETTERS = " .:-=+*#%@"  # dark to bright
COLOURS = (
    "black",
    "red",
    "green",
    "yellow",
    "blue",
    "magenta",
    "cyan",
    "white",
)  # in the order of ANSI codes
BRIGHTNESS = np.array((0.299, 0.587, 0.114), np.float32)  # Rec. 601 luma


def console_lines(picture: NDArray[np.uint8], width: int, back: str | None = None) -> list[str]:
    """(H, W, 3) uint8 as lines of `width` letters with ANSI colours.

    back: a name of COLOURS or an escape sequence. Letters are taken as twice as high as wide.
    """
    height, full = picture.shape[:2]
    small = resize_and_crop(picture, width, max(1, round(height / full * width / 2)))
    start = _background(back)
    ramp = (small @ BRIGHTNESS / 256 * len(LETTERS)).astype(int)
    lines = []
    for colours, letters in zip(small.tolist(), ramp.tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{r};{g};{b}m{LETTERS[at]}" for (r, g, b), at in zip(colours, letters, strict=True)
        )
        lines.append(f"{start}{''.join(cells)}\x1b[0m")
    return lines


def _background(back: str | None) -> str:
    if not back or back.startswith("\x1b["):
        return back or ""
    if back.lower() not in COLOURS:
        raise ConfigError(f"--console_back {back}: choose one of {', '.join(COLOURS)}.")
    return f"\x1b[{40 + COLOURS.index(back.lower())}m"
