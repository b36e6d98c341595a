"""Sample pictures of a job: small copies in the temporary folder, a bounded number of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.events import Preview
from musubi_core.files.replace import replace_file

PICTURES = 400  # of one job; more are thinned out, evenly over the steps
PICTURE_SIDE = 1024  # pixels of the longer side
CLIP_SIDE = 512
CLIP_FRAMES = 81  # of longer clips every n-th frame is shown
TEXT = 500  # characters of a prompt or another detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A picture or clip that the dashboard can ask for by number. still: for a clip, its middle frame."""

    number: int
    step: int
    title: str
    width: int
    height: int
    details: Mapping[str, str]
    still: Path
    clip: Path | None = None

    def record(self) -> dict[str, Any]:
        """What the page is told: no path."""
        return {
            "number": self.number,
            "step": self.step,
            "title": self.title,
            "width": self.width,
            "height": self.height,
            "details": dict(self.details),
            "clip": self.clip is not None,
        }

    def delete(self) -> None:
        self.still.unlink(missing_ok=True)
        if self.clip is not None:
            self.clip.unlink(missing_ok=True)


def small_image(frame: Any, side: int) -> Any:
    """A PIL image of one (H, W, 3) uint8 frame, its longer side at most `side`."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    return image


def write_sample(preview: Preview, number: int, folder: Path) -> Sample:
    """Write a preview below `folder`. Raises BadFileError when the disk is full."""
    frames = preview.frames
    images = [small_image(frames[len(frames) // 2], PICTURE_SIDE)]
    still = folder / f"{number}.jpg"
    with replace_file(still) as file:
        images[0].save(file, "JPEG", quality=90)
    return Sample(
        number=number,
        step=preview.step,
        title=preview.title[:TEXT],
        width=images[0].width,
        height=images[0].height,
        details={str(key): str(value)[:TEXT] for key, value in preview.details.items()},
        still=still,
        clip=write_clip(preview, folder / f"{number}.webp") if len(frames) > 1 else None,
    )


def write_clip(preview: Preview, path: Path) -> Path:
    """An animated WebP, which every browser plays in a picture element."""
    frames = preview.frames
    every = -(-len(frames) // CLIP_FRAMES)
    first, *rest = [small_image(frame, CLIP_SIDE) for frame in frames[::every]]
    pause = round(1000 * every / (preview.fps or 16))
    with replace_file(path) as file:
        first.save(
            file, "WEBP", save_all=True, append_images=rest, duration=pause, loop=0, quality=70, method=0
        )
    return path


def thinned(samples: list[Sample], limit: int = PICTURES) -> tuple[list[Sample], list[Sample]]:
    """(kept, dropped): above the limit, every second step goes, except the first and the last."""
    if len(samples) <= limit:
        return samples, []
    steps = sorted({sample.step for sample in samples})
    leaving = set(steps[1:-1:2])
    if not leaving:  # hundreds of pictures of one or two steps: the oldest go
        half = len(samples) // 2
        return samples[half:], samples[:half]
    kept = [sample for sample in samples if sample.step not in leaving]
    return kept, [sample for sample in samples if sample.step in leaving]
