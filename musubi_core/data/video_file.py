"""Video files: what their headers and packets say, and their frames one by one.

A video may also be a folder of pictures, one frame each, in the order of their names. Frames are shown the
way the display rotation of the file says. The rate is the container's average, also where it varies.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musubi_core.data.picture_file import is_picture, picture_size, read_picture
from musubi_core.errors import BadFileError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEOS = frozenset((".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"))
CUT_OFF = 0.9  # a file that ends before this share of its stated length is taken as cut off
UNEVEN = 1.75  # longest over shortest distance of frames that still counts as a constant rate


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoHeader:
    """size: (width, height) as shown. frames: as stored. fps: 0 when the file does not tell."""

    size: tuple[int, int]
    frames: int
    fps: float
    variable: bool = False  # the distance of frames varies


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def picture_frames(folder: Path) -> list[Path]:
    """The pictures of a folder that stands for a video, sorted by name."""
    return sorted((file for file in folder.iterdir() if is_picture(file)), key=lambda file: file.name)


def video_header(path: Path) -> VideoHeader:
    """Read headers and packets, no pixels but those of the first frame of a file that may be rotated.

    Raises BadFileError for a file that is missing, empty, damaged, cut off, or has no video in it.
    """
    if path.is_dir():
        return _folder_header(path)
    with _opened(path) as (container, stream):
        count, shortest, longest = _count_frames(path, container, stream)
        if count == 0:
            raise BadFileError(f"{path} has a video stream without a single frame.")
        rate = stream.average_rate or stream.guessed_rate
        width, height = stream.codec_context.width, stream.codec_context.height
        header_only = "mov" not in container.format.name
    if not header_only and _is_sideways(path):
        width, height = height, width
    if width < 1 or height < 1:
        raise BadFileError(f"{path} does not state the size of its frames. Re-encode it.")
    uneven = shortest > 0 and longest > UNEVEN * shortest
    return VideoHeader(size=(width, height), frames=count, fps=float(rate or 0), variable=uneven)


def decode(path: Path) -> Generator[VideoFrame | Path, None, None]:
    """The frames of a video in the order they are shown, not yet as pixels: see `frame_pixels`.

    Only one frame is held here at a time. Raises BadFileError where the file cannot be decoded on.
    """
    if path.is_dir():
        yield from picture_frames(path)
        return
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def frame_pixels(frame: VideoFrame | Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, turned upright."""
    if isinstance(frame, Path):
        return read_picture(frame)
    pixels: NDArray[Any] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as np.rot90
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; errors of FFmpeg inside become BadFileError."""
    import av

    if not path.exists():
        raise BadFileError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise BadFileError(f"{path} is empty (0 bytes).")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise BadFileError(f"{path} has no video in it, only {kinds}.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BadFileError(f"{path} uses a video codec that this PyAV cannot decode. Re-encode it.")
            yield container, stream
    except av.FFmpegError as error:
        text = error.strerror or str(error)
        raise BadFileError(f"{path} cannot be read as a video: {text}. It is damaged or cut off.") from None


def _count_frames(path: Path, container: InputContainer, stream: VideoStream) -> tuple[int, int, int]:
    """(frames, shortest distance, longest distance of two frames), without decoding.

    MP4 and MOV list all frames in an index, so the media data need not be read; other files are demuxed.
    """
    entries = getattr(stream, "index_entries", None) if "mov" in container.format.name else None
    if stream.frames > 0 and entries:
        shown = [entry for entry in entries if not entry.is_discard]
        size = path.stat().st_size
        whole = sum(entry.pos + entry.size <= size for entry in shown)
        if whole < len(shown):
            raise BadFileError(
                f"{path} is cut off: its index promises {len(shown)} frames, {whole} are there."
            )
        return len(shown), *_distances([entry.timestamp for entry in shown])
    times = [packet.pts for packet in container.demux(stream) if _shows_a_frame(packet, stream)]
    known = [time for time in times if time is not None]
    _check_length(path, stream, known)
    return len(times), *_distances(known)


def _shows_a_frame(packet: Any, stream: VideoStream) -> bool:
    if not packet.size or packet.is_discard:
        return False
    if stream.codec_context.name == "vp8":
        return bool(memoryview(packet)[0] >> 4 & 1)  # VP8 keeps reference frames that are never shown
    return True


def _distances(times: list[int]) -> tuple[int, int]:
    """Shortest and longest distance of neighbouring times; (0, 0) where there are none.

    The last one is left out: muxers often guess it.
    """
    ordered = sorted(times)
    gaps = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    return (min(gaps), max(gaps)) if gaps else (0, 0)


def _check_length(path: Path, stream: VideoStream, times: list[int]) -> None:
    """Raise BadFileError when packets end well before the length that the header states."""
    if not times or stream.time_base is None:
        return
    stated = _stated_seconds(stream)
    held = float((max(times) - min(times)) * stream.time_base)
    rate = stream.average_rate or stream.guessed_rate
    held += 1 / float(rate) if rate else 0.0
    if stated and held < CUT_OFF * stated:
        raise BadFileError(f"{path} is cut off: its header promises {stated:.1f} s, {held:.1f} s are there.")


def _stated_seconds(stream: VideoStream) -> float:
    """The stream's own length in seconds, 0 where it is not stated."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")  # Matroska: "00:00:02.000000000"
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:
        return 0.0
    return hours * 3600 + minutes * 60 + seconds


def _is_sideways(path: Path) -> bool:
    """Whether the display matrix turns the frames by a quarter; only a decoded frame tells it."""
    with _opened(path) as (container, stream):
        stream.thread_type = "NONE"
        frame = next(iter(container.decode(stream)), None)
        return frame is not None and round(getattr(frame, "rotation", 0) / 90) % 2 == 1


def _folder_header(folder: Path) -> VideoHeader:
    files = picture_frames(folder)
    if not files:
        raise BadFileError(f"{folder} is a folder without pictures, so it is no video.")
    return VideoHeader(size=picture_size(files[0]), frames=len(files), fps=0.0)
