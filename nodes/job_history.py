"""The numbers of a job, kept in a bounded space however long it runs."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS = 800  # of one curve, at most; a screen has hardly more columns to show them in
CURVES = 64  # of one job; the trainer logs about twenty
PACE_MARKS = 32  # recent progress events that the pace is taken from


@dataclass(slots=True)
class Point:
    """The values of `count` steps in a row, the last of them `step`."""

    step: int
    mean: float
    low: float
    high: float
    count: int = 1

    def join(self, later: Point) -> None:
        """Take the steps of a later point in."""
        count = self.count + later.count
        self.mean += (later.mean - self.mean) * later.count / count
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.step, self.count = later.step, count


class Curve:
    """One number over the steps. When it is full, neighbours are joined: half the points, the whole run.

    `web/dashboard/curves.js` does the same, so that a page that watched and one that was reloaded agree.
    """

    def __init__(self, limit: int = POINTS) -> None:
        self.points: list[Point] = []
        self.stride = 1  # steps that share a point
        self.limit = limit

    def add(self, step: int, value: float) -> None:
        """The value of one step. NaN and infinity are left out; a step back begins the curve again."""
        if not math.isfinite(value):
            return
        if self.points and step <= self.points[-1].step:
            self.points, self.stride = [], 1
        new = Point(step, value, value, value)
        if self.points and self.points[-1].count < self.stride:
            self.points[-1].join(new)
        else:
            self.points.append(new)
        if len(self.points) > self.limit:
            self._halve()

    def _halve(self) -> None:
        left, right = self.points[0::2], self.points[1::2]
        for one, other in zip(left, right, strict=False):
            one.join(other)
        self.points, self.stride = left, self.stride * 2

    def rows(self) -> list[list[float]]:
        """[step, mean, low, high, count] of each point, for JSON."""
        return [[one.step, one.mean, one.low, one.high, one.count] for one in self.points]


class Curves:
    """All curves of a job by name, and the newest value of each."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.latest: dict[str, float] = {}

    def add(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a step. Returns those that were kept: finite ones, of the first curves."""
        kept = {}
        for name, value in values.items():
            full = name not in self.curves and len(self.curves) >= CURVES
            if full or not math.isfinite(value):
                continue
            self.curves.setdefault(name, Curve()).add(step, float(value))
            self.latest[name] = kept[name] = float(value)
        return kept

    def rows(self) -> dict[str, list[list[float]]]:
        return {name: curve.rows() for name, curve in self.curves.items()}


@dataclass(slots=True)
class Pace:
    """How fast a stage goes: seconds per unit over its last marks, so a slow first step is soon forgotten."""

    stage: str = ""
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE_MARKS))

    def mark(self, stage: str, done: int, now: float | None = None) -> None:
        """`done` units of a stage are done. Another stage, or one that goes back, begins again."""
        if stage != self.stage or (self.marks and done < self.marks[-1][1]):
            self.stage = stage
            self.marks.clear()
        if not self.marks or done > self.marks[-1][1]:
            self.marks.append((time.monotonic() if now is None else now, done))

    def seconds(self) -> float | None:
        """Seconds per unit. None while only one mark is known."""
        if len(self.marks) < 2:
            return None
        (first, before), (last, after) = self.marks[0], self.marks[-1]
        return (last - first) / (after - before)
