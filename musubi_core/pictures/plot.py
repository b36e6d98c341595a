"""Curves and bars as small PNG-ready pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INK, GRID, PAPER = (40, 44, 52), (225, 228, 232), (255, 255, 255)
COLOURS = (
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (23, 190, 207)),
    *((140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (0, 0, 110), (0, 90, 50)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where the axes lie and what they span."""

    left: int
    top: int
    right: int
    bottom: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position of a data point."""
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str = "step",
    size: tuple[int, int] = (960, 540),
    legend_beside: bool = False,
    dots: Mapping[str, tuple[float, float]] | None = None,
) -> Image:
    """Lines over a common x axis. series: name -> (x, y) points; points that are not finite leave a gap.

    A series of one point is drawn as a dot. Nothing to draw gives the empty axes, titled. legend_beside: the
    names stand in a column of their own, where many lines would run through them. dots: points to mark.
    """
    finite = [p for points in series.values() for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    beside = max((_width(name) + 40 for name in series), default=0) if legend_beside else 0
    frame = _frame_around(finite, size)
    image, draw = _paper((size[0] + beside, size[1]), title)
    _axes(draw, frame, x_label)
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        for run in _finite_runs(points):
            spots = [frame.at(x, y) for x, y in run]
            if len(spots) == 1:
                x, y = spots[0]
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
            else:
                draw.line(spots, fill=colour, width=2, joint="curve")
        if name in (dots or {}):
            x, y = frame.at(*(dots or {})[name])
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=INK)
        if legend_beside:
            _entry(draw, size[0], frame.top + 10 + 20 * index, name, colour)
        else:
            _legend(draw, frame, index, name, colour)
    return image


def bars(
    values: Sequence[float],
    *,
    title: str,
    x_low: float = 0.0,
    x_high: float = 1.0,
    x_label: str = "",
    size: tuple[int, int] = (960, 540),
) -> Image:
    """A histogram of equally wide bins between x_low and x_high. values: height of each bin, not negative."""
    top = max(values, default=0.0) or 1.0
    frame = _frame_around([(x_low, 0.0), (x_high, top)], size)
    image, draw = _paper(size, title)
    _axes(draw, frame, x_label)
    width = (x_high - x_low) / max(len(values), 1)
    for index, value in enumerate(values):
        left, up = frame.at(x_low + index * width, value)
        right, down = frame.at(x_low + (index + 1) * width, 0.0)
        draw.rectangle((left, up, max(right - 1, left), down), fill=COLOURS[0])
    return image


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.9) -> list[tuple[float, float]]:
    """Exponential moving average, corrected for its start; values that are not finite are left out."""
    result, total, norm = [], 0.0, 0.0
    for x, y in points:
        if math.isfinite(y):
            total = weight * total + (1 - weight) * y
            norm = weight * norm + (1 - weight)
            result.append((x, total / norm))
    return result


def _finite_runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _frame_around(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Frame:
    xs, ys = [x for x, _ in points] or [0.0, 1.0], [y for _, y in points] or [0.0, 1.0]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    margin = (y_high - y_low) * 0.05 or abs(y_high) * 0.1 or 1.0
    return Frame(
        left=80,
        top=40,
        right=size[0] - 24,
        bottom=size[1] - 56,
        x_low=x_low,
        x_high=x_high,
        y_low=y_low - margin if y_low != 0 else 0.0,
        y_high=y_high + margin,
    )


def _paper(size: tuple[int, int], title: str) -> tuple[Image, ImageDraw]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((size[0] / 2, 20), title, fill=INK, font=_font(18), anchor="mm")
    return image, draw


def _axes(draw: ImageDraw, frame: Frame, x_label: str) -> None:
    for value in ticks(frame.y_low, frame.y_high):
        _, y = frame.at(frame.x_low, value)
        draw.line((frame.left, y, frame.right, y), fill=GRID)
        draw.text((frame.left - 8, y), f"{value:.4g}", fill=INK, font=_font(13), anchor="rm")
    for value in ticks(frame.x_low, frame.x_high):
        x, _ = frame.at(value, frame.y_low)
        draw.line((x, frame.top, x, frame.bottom), fill=GRID)
        draw.text((x, frame.bottom + 8), f"{value:.4g}", fill=INK, font=_font(13), anchor="ma")
    draw.rectangle((frame.left, frame.top, frame.right, frame.bottom), outline=INK)
    middle = (frame.left + frame.right) / 2
    draw.text((middle, frame.bottom + 40), x_label, fill=INK, font=_font(14), anchor="mm")


def _legend(draw: ImageDraw, frame: Frame, row: int, name: str, colour: tuple[int, int, int]) -> None:
    """At the top right: curves of a loss fall, so that corner is free."""
    top = frame.top + 10 + 20 * row
    draw.rectangle((frame.right - 24, top, frame.right - 10, top + 12), fill=colour)
    draw.text((frame.right - 32, top + 6), name, fill=INK, font=_font(14), anchor="rm")


def _entry(draw: ImageDraw, left: float, top: float, name: str, colour: tuple[int, int, int]) -> None:
    draw.rectangle((left, top, left + 14, top + 12), fill=colour)
    draw.text((left + 22, top + 6), name, fill=INK, font=_font(14), anchor="lm")


def _width(name: str) -> int:
    return math.ceil(_font(14).getlength(name))


def ticks(low: float, high: float, *, about: int = 6) -> list[float]:
    """Round numbers between low and high, about that many: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _font(size: int):  # type: ignore[no-untyped-def]  # Pillow has two font classes without a common base
    from PIL import ImageFont

    return ImageFont.load_default(size)
