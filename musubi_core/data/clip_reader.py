"""Clips out of a stream of frames, in one pass: every needed frame is converted and resized once.

Only the frames of windows that are still open are held, and decoding stops after the last frame that any
window needs, so a long video costs no more memory than its windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musubi_core.data.clips import FrameRate, Window
from musubi_core.data.resize import resize_and_crop
from musubi_core.data.video_file import decode, frame_pixels
from musubi_core.errors import BadFileError

Frame = NDArray[np.uint8]  # (h, w, 3)
Clip = NDArray[np.uint8]  # (F, h, w, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRequest:
    """What to read of one video. size: (width, height). promised: frames that its packets announce.

    pad: repeat the last frame where the video ends before a window does, instead of refusing it.
    """

    path: Path
    windows: Sequence[Window]
    rate: FrameRate
    size: tuple[int, int]
    promised: int
    pad: bool = False


def read_clips(request: ClipRequest) -> Generator[tuple[Window, Clip], None, None]:
    """Each window as soon as its last frame is decoded, in the order of their ends, then of their starts.

    Yields (window, (F, height, width, 3) uint8). Raises BadFileError for a file that is damaged or decodes
    fewer frames than promised.
    """
    with contextlib.closing(_converted(request)) as frames:
        yield from cut(frames, request.windows)


def cut(frames: Iterable[tuple[int, Frame]], windows: Sequence[Window]) -> Iterator[tuple[Window, Clip]]:
    """Windows out of numbered frames: `frames` has, ascending, every number that a window needs."""
    order = sorted(windows, key=lambda window: (sum(window), window[0]))
    first_needed = _first_needed(order)
    held: dict[int, Frame] = {}  # ascending
    done = 0
    for number, frame in frames:
        held[number] = frame
        while done < len(order) and sum(order[done]) == number + 1:
            start, length = order[done]
            yield order[done], np.stack([held[start + offset] for offset in range(length)])
            done += 1
        while held and (done == len(order) or next(iter(held)) < first_needed[done]):
            del held[next(iter(held))]


def _first_needed(order: Sequence[Window]) -> list[int]:
    """For each window, the earliest start among itself and those after it."""
    earliest: list[int] = []
    for start, _ in reversed(order):
        earliest.append(min(start, earliest[-1]) if earliest else start)
    return earliest[::-1]


def _converted(request: ClipRequest) -> Generator[tuple[int, Frame], None, None]:
    """(number, frame) at the converted rate, for every number that a window needs, ascending."""
    needed = {start + offset for start, length in request.windows for offset in range(length)}
    waiting = sorted(needed, reverse=True)
    index, frame = -1, None
    with contextlib.closing(decode(request.path)) as frames:
        for index, frame in enumerate(frames):
            pixels: Frame | None = None
            while waiting and request.rate.source_frame(waiting[-1]) == index:
                pixels = _sized(request, index, frame) if pixels is None else pixels
                yield waiting.pop(), pixels
            if not waiting:
                return
    if frame is None or not request.pad:
        raise BadFileError(
            f"{request.path}: {index + 1} frames could be decoded, but its packets promise "
            f"{request.promised}. The file is damaged: re-encode it, or take it out of the dataset."
        )
    pixels = _sized(request, index, frame)
    while waiting:
        yield waiting.pop(), pixels


def _sized(request: ClipRequest, index: int, frame: Any) -> Frame:
    if getattr(frame, "is_corrupt", False):
        raise BadFileError(f"{request.path}: frame {index} is damaged. Re-encode the file or take it out.")
    return resize_and_crop(frame_pixels(frame), *request.size)
