"""Pictures and videos made on the spot, small, with contents that a test can recognise."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from musubi_core.config import LatentShape
from musubi_core.data.dataset import DatasetConfig, dataset_from

SHAPE = LatentShape(
    architecture="video_model", short="vm", channels=16, spatial=8, temporal=4, pixel_step=16, fps=24.0
)


def video_shape(**changes: object) -> LatentShape:
    from dataclasses import replace

    return replace(SHAPE, **changes)


def write_picture(
    path: Path, size: tuple[int, int] = (64, 48), *, caption: str | None = "a picture", **save
) -> Path:
    """A gradient; its caption beside it."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def grey_of(frame: int) -> int:
    """The brightness of a frame of `write_video`: 20, 24, ..., 236, 20, ..."""
    return 20 + frame * 4 % 220


def write_video(
    path: Path,
    frames: int = 30,
    *,
    fps: Fraction | int = 24,
    size: tuple[int, int] = (64, 48),
    codec: str = "ffv1",
    caption: str | None = "a video",
    turn: int = 0,
    grey: Callable[[int], int] = grey_of,
) -> Path:
    """Frame i is one even grey, `grey(i)`; ffv1 keeps it almost exactly, so a frame can be told by it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), grey(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def greys(clip: np.ndarray) -> list[int]:
    """The brightness of each frame of a clip."""
    return [int(frame.mean() + 0.5) for frame in clip]


def near(found: list[int], frames: list[int], tolerance: int = 1) -> bool:
    """Whether the brightnesses are those of these frames."""
    return len(found) == len(frames) and all(
        abs(grey - grey_of(frame)) <= tolerance for grey, frame in zip(found, frames, strict=True)
    )


def dataset(folder: Path, **keys: object) -> DatasetConfig:
    """A dataset of 64x64 samples of a folder, of videos when a key of videos is among `keys`."""
    source = (
        "video_directory"
        if keys.keys() & {"target_frames", "frame_extraction", "source_fps"}
        else "image_directory"
    )
    return dataset_from(
        {source: str(folder), "resolution": 64, "enable_bucket": True, **keys}, where="datasets[0]"
    )
