"""What a drawing starts from: its settings, its prompts as tensors, and its pictures as latents."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musubi_core.config import LatentShape
from musubi_core.data.clip_reader import ClipRequest, read_clips
from musubi_core.data.clips import FrameRate
from musubi_core.data.picture_file import read_picture
from musubi_core.data.resize import resize_and_crop
from musubi_core.data.video_file import video_header
from musubi_core.errors import BadFileError
from musubi_core.generation.settings import DrawSettings
from musubi_core.generation.text import Encoded
from musubi_core.models.spec import ArchSpec, EncodedPictures, GivenPictures, LatentCodec, TakenPictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Ready to be drawn. Tensors are on the CPU, by canonical cache name, without a batch axis.

    size: of the latent, (C, F, H, W) or (C, H, W). negative: None where no network is asked twice. result: of
    several frames the one to show; None for all. start: like size, a clean latent to begin with.
    """

    settings: DrawSettings
    size: tuple[int, ...]
    text: Encoded
    negative: Encoded | None
    pictures: Mapping[str, Tensor]
    result: int | None = None
    start: Tensor | None = None


def has_pictures(settings: DrawSettings) -> bool:
    """Whether `prepare` needs a VAE."""
    given = settings.given
    clips = given.control_video or given.video
    return bool(given.image or given.end_image or clips or given.control_images)


def prepare(
    spec: ArchSpec,
    settings: DrawSettings,
    texts: Mapping[str, Encoded],
    *,
    codec: LatentCodec | None,
    options: Any,
) -> Conditions:
    """Read the pictures of a prompt and encode them, as latent caching does.

    texts: from `encode_prompts`. codec: an opened VAE; None will do unless `has_pictures`. options: settled
    train options. Raises BadFileError for a picture that cannot be read, ConfigError for one that is missing.
    """
    shape = spec.latent_with(options)
    pictures = EncodedPictures()
    if has_pictures(settings):
        if codec is None:
            raise ValueError("a prompt with pictures needs a VAE")
        given = read_pictures(settings, shape, spec.sampling_with(options).pictures)
        pictures = spec.encode_pictures(codec, given, options)
    return Conditions(
        settings=settings,
        size=latent_size(settings, shape, pictures.frames),
        text=texts[settings.text],
        negative=None if settings.negative_prompt is None else texts[settings.negative_prompt],
        pictures=pictures.tensors,
        result=None if pictures.frames is None else pictures.result,
        start=pictures.start,
    )


def latent_size(settings: DrawSettings, shape: LatentShape, frames: int | None = None) -> tuple[int, ...]:
    """(C, F, H, W), or (C, H, W) where there are no clips. frames: F, where it is not that of the drawing."""
    usual, height, width = shape.size(settings.width, settings.height, settings.frames)
    frames = usual if frames is None else frames
    return (shape.channels, frames, height, width) if shape.temporal else (shape.channels, height, width)


def read_pictures(settings: DrawSettings, shape: LatentShape, taken: TakenPictures) -> GivenPictures:
    """The pictures of a prompt as pixels: scaled until they cover their size, cut at the centre."""
    given = settings.given
    return GivenPictures(
        size=(settings.frames, settings.height, settings.width),
        seed=settings.seed,
        image=_picture(given.image, settings),
        end_image=_picture(given.end_image, settings),
        control_video=_clip(given.control_video, settings, shape.fps),
        video=_clip(given.video, settings, shape.fps),
        control_images=tuple(
            _control(path, settings, taken, shape.pixel_step) for path in given.control_images
        ),
        one_frame=settings.one_frame,
    )


def _picture(path: Path | None, settings: DrawSettings) -> Tensor | None:
    if path is None:
        return None
    return torch.from_numpy(resize_and_crop(read_picture(path), settings.width, settings.height).copy())


def _control(path: Path, settings: DrawSettings, taken: TakenPictures, step: int) -> Tensor:
    """(h, w, 3 or 4) uint8."""
    pixels = read_picture(path, alpha=True)
    height, width = pixels.shape[:2]
    if not settings.given.resize_controls:
        return torch.from_numpy(_cut(pixels, step, path))
    if taken.control_size is not None:
        size = taken.control_size(width, height)
    else:
        size = settings.width, settings.height
    return torch.from_numpy(resize_and_crop(pixels, *size).copy())


def _cut(pixels: NDArray[np.uint8], step: int, path: Path) -> NDArray[np.uint8]:
    """The middle, as large as multiples of `step` allow. Raises BadFileError for less than one step."""
    height, width = (side // step * step for side in pixels.shape[:2])
    if not height or not width:
        raise BadFileError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels; a control picture that keeps its size "
            f"has at least {step}x{step}."
        )
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _clip(path: Path | None, settings: DrawSettings, fps: float) -> Tensor | None:
    """(F, H, W, 3) uint8 at the model's rate; the last frame stands still where the file is shorter."""
    if path is None:
        return None
    header = video_header(path)
    request = ClipRequest(
        path=path,
        windows=[(0, settings.frames)],
        rate=FrameRate(header.fps or fps, fps),
        size=(settings.width, settings.height),
        promised=header.frames,
        pad=True,
    )
    with contextlib.closing(read_clips(request)) as clips:
        _, frames = next(clips)
    return torch.from_numpy(frames)
