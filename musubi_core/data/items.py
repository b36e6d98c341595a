"""What a dataset is made of, from media files to cached latents. Plain values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNREADABLE = "cannot be read"  # the group of files that are damaged, as opposed to not wanted


def text_name(stem: str, short: str) -> str:
    """The name of a text cache: one per media file, shared by all windows of a clip."""
    return f"{stem}_{short}_te.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One media file that will be used, with everything that belongs to it.

    size: (width, height) in pixels as shown, that is after EXIF or display rotation. frames: frames after
    conversion to the architecture's rate, source_frames: before it; both 1 for a picture. stem: the file's
    base name, made unique within a cache folder; cache names start with it.
    """

    path: Path  # a picture, a video, or a folder of numbered pictures
    stem: str
    is_video: bool
    size: tuple[int, int]
    frames: int
    fps: float  # of the file, or as declared by source_fps; 0 for a picture
    caption: str
    targets: tuple[Path, ...] = ()  # further target pictures (multiple_target), same bucket
    controls: tuple[Path, ...] = ()
    source_frames: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One latent to make: a picture, or one window of a clip, at the size of its bucket.

    start, frames: window [start, start + frames) after fps conversion. bucket: (width, height).
    control_sizes: (width, height) of each control after its own resizing rule.
    """

    item: Item
    bucket: tuple[int, int]
    start: int = 0
    frames: int = 1
    control_sizes: tuple[tuple[int, int], ...] = ()

    def latent_name(self, short: str) -> str:
        """musubi-tuner's file name (reference data-and-training 3.1)."""
        if not self.item.is_video:
            width, height = self.item.size
            return f"{self.item.stem}_{width:04d}x{height:04d}_{short}.safetensors"
        width, height = self.bucket
        window = f"{self.start:05d}-{self.frames:03d}"
        return f"{self.item.stem}_{window}_{width:04d}x{height:04d}_{short}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that is not used, and why, in words for the user. Reasons of one group are counted together."""

    path: Path
    reason: str
    group: str = UNREADABLE
