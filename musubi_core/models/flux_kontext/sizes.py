"""The sizes of pictures that the network was made with. No torch."""

from __future__ import annotations

# (width, height), about a million pixels each; the turned ones too.
_UPRIGHT = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184)),
    *((944, 1104), (1024, 1024)),
)
SIZES = tuple(dict.fromkeys(size for one in _UPRIGHT for size in (one, one[::-1])))


def nearest_size(width: int, height: int) -> tuple[int, int]:
    """The one whose proportions are nearest to those of a picture."""
    return min(SIZES, key=lambda size: abs(size[0] / size[1] - width / height))
