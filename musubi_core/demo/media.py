"""Real photographs, short real clips, edits, captions and the dataset file of the demo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from musubi_core.config import LatentShape
from musubi_core.errors import MissingLibraryError
from musubi_core.files.replace import replace_file, write_text

PHOTOGRAPHS = {
    "astronaut": "A portrait photograph of a smiling astronaut in an orange space suit before a flag.",
    "chelsea": "A close photograph of a ginger tabby cat that looks to the side.",
    "coffee": "A photograph of a cup of coffee with a spoon on a wooden table.",
    "rocket": "A photograph of a rocket on its launch pad, lit by floodlights at night.",
    "hubble_deep_field": "A deep photograph of the night sky with hundreds of small, distant galaxies.",
}
CLIPS = {
    "cat_pan": ("chelsea", "The camera glides slowly from left to right over a ginger tabby cat."),
    "coffee_pan": ("coffee", "The camera glides slowly from left to right over a cup of coffee."),
}
EDIT = "Add colour. {}"
FPS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMedia:
    """What was written: the dataset file, and the caption of each photograph by its name."""

    dataset: Path
    captions: Mapping[str, str]
    edits: bool  # whether the photographs are the results of edits


def write_media(folder: Path, shape: LatentShape) -> DemoMedia:
    """Photographs below `folder`, each with its caption, and dataset.toml: what `shape` can be trained on.

    Clips too where the architecture knows them. Where it learns edits, each photograph has a grey copy as
    the picture before the edit, and the caption is the instruction. Raises MissingLibraryError when the
    package that carries the photographs is not installed.
    """
    video, edits = bool(shape.temporal), shape.min_controls > 0
    captions = {name: EDIT.format(caption) if edits else caption for name, caption in PHOTOGRAPHS.items()}
    for name, caption in captions.items():
        picture = _fitted(photograph(name), 512)
        _write_picture(folder / "photographs" / f"{name}.jpg", picture)
        write_text(folder / "photographs" / f"{name}.txt", caption + "\n")
        for number in range(shape.min_controls):
            _write_picture(folder / "controls" / f"{name}_{number}.jpg", grey(picture))
    if video:
        for name, (source, caption) in CLIPS.items():
            write_clip(folder / "clips" / f"{name}.mp4", pan(_fitted(photograph(source), 256), frames=25))
            write_text(folder / "clips" / f"{name}.txt", caption + "\n")
    dataset = folder / "dataset.toml"
    write_text(dataset, _dataset_text(folder.resolve(), video=video, edits=edits))
    return DemoMedia(dataset=dataset, captions=captions, edits=edits)


def photograph(name: str) -> np.ndarray:
    """(H, W, 3) uint8, one of the pictures that scikit-image carries in its package."""
    try:
        from skimage import data
    except ImportError:
        raise MissingLibraryError(
            "The demo shows real photographs from the package scikit-image, which is not installed. "
            'Install it with: pip install "comfyui-musubi[demo]" (or pip install scikit-image).'
        ) from None
    return np.ascontiguousarray(getattr(data, name)()[..., :3])


def pan(picture: np.ndarray, *, frames: int) -> np.ndarray:
    """(H, W, 3) -> (frames, H, W // 2, 3): a window of half the width moves from left to right."""
    width = picture.shape[1] // 2
    starts = np.linspace(0, picture.shape[1] - width, frames).round().astype(int)
    return np.stack([picture[:, start : start + width] for start in starts])


def grey(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) without its colours, same shape: the mean of red, green and blue."""
    return np.repeat(picture.mean(axis=2, keepdims=True).round().astype(np.uint8), 3, axis=2)


def write_clip(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Encode (F, H, W, 3) uint8 as an MP4 file."""
    import av

    height, width = (frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2)  # yuv420p wants even sides
    with replace_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps), options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _fitted(picture: np.ndarray, long_side: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with replace_file(path) as file:
        Image.fromarray(pixels).save(file, format="JPEG", quality=95)


def _dataset_text(folder: Path, *, video: bool, edits: bool) -> str:
    def toml_path(*parts: str) -> str:
        return json.dumps(folder.joinpath(*parts).as_posix(), ensure_ascii=False)

    text = f"""# Written by `musubi demo`.
[general]
resolution = [96, 96]
caption_extension = ".txt"
enable_bucket = true
batch_size = 2

[[datasets]]
image_directory = {toml_path("photographs")}
cache_directory = {toml_path("cache", "photographs")}
"""
    if edits:
        text += f"control_directory = {toml_path('controls')}\n"
    if video:
        text += f"""
[[datasets]]
video_directory = {toml_path("clips")}
cache_directory = {toml_path("cache", "clips")}
target_frames = [1, 9]
frame_extraction = "head"
"""
    return text
