"""What a run came to, as values and pictures for a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from musubi_core.events import Event, Preview
from musubi_core.pictures.plot import curves, smooth
from musubi_core.training.metrics import read_metrics

from ..pictures import as_batch, as_image

LOSS, VALIDATION = "loss/current", "loss/validation"
KEPT = 64  # previews that are given on as IMAGE


class Previews:
    """A listener that keeps the newest pictures made on the way; of clips, the middle frame."""

    def __init__(self) -> None:
        self.pictures: list[Any] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Preview):
            self.pictures.append(event.frames[len(event.frames) // 2])
            del self.pictures[:-KEPT]

    def batch(self) -> Tensor | None:
        """An IMAGE batch, oldest first; None when there is none."""
        return as_batch(self.pictures) if self.pictures else None


def losses(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The loss of every step, as ComfyUI's LOSS_MAP holds it; steps without a number are left out."""
    return [row[LOSS] for row in rows if row.get(LOSS) is not None]


def loss_plot(rows: Sequence[Mapping[str, Any]], title: str) -> Tensor:
    """Raw, smoothed and validation loss over the steps, as an IMAGE."""
    raw = [(row["step"], row[LOSS]) for row in rows if row.get(LOSS) is not None]
    series = {"loss": raw, "smoothed": smooth(raw)}
    names = sorted({name for row in rows for name in row if name.startswith(VALIDATION)})
    for name in names:
        series[name.removeprefix("loss/")] = [
            (row["step"], row[name]) for row in rows if row.get(name) is not None
        ]
    return as_image(curves(series, title=title))


def metrics(path: Path | None) -> list[dict[str, Any]]:
    """All steps of a run, also those before a resume."""
    return [] if path is None or not path.is_file() else read_metrics(path)
