"""Samples as pixels: what an encoder is given."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from musubi_core.config import LatentShape
from musubi_core.data.clip_reader import ClipRequest, read_clips
from musubi_core.data.clips import FrameRate
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.data.items import Item, Sample
from musubi_core.data.picture_file import read_picture
from musubi_core.data.resize import resize_and_crop
from musubi_core.data.video_file import video_header

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSample:
    """A sample with its pixels, at the sizes the sample says.

    frames: (F, h, w, 3); with multiple_target (1 + targets, h, w, 4), opaque where a picture has no alpha.
    controls: each (1, h, w, 3 or 4) for pictures, (F, h, w, 3) for videos.
    """

    sample: Sample
    frames: Frames
    controls: tuple[Frames, ...] = ()


def load_item_samples(
    item: Item, samples: Sequence[Sample], dataset: DatasetConfig, shape: LatentShape
) -> Generator[LoadedSample, None, None]:
    """Every sample of one item, each as soon as it is complete, in the order of their last frames.

    One pass over the file, however many samples. Raises BadFileError that names a damaged file.
    """
    if not item.is_video:
        for sample in samples:
            yield _picture(sample, dataset)
        return
    by_window = {(sample.start, sample.frames): sample for sample in samples}
    request = ClipRequest(
        path=item.path,
        windows=list(by_window),
        rate=FrameRate(item.fps, shape.fps),
        size=samples[0].bucket,  # one file, one size, one bucket
        promised=item.source_frames,
    )
    with contextlib.ExitStack() as stack:
        clips = stack.enter_context(contextlib.closing(read_clips(request)))
        controls = [
            stack.enter_context(contextlib.closing(read_clips(control)))
            for control in _control_requests(request, item, dataset, shape)
        ]
        for window, frames in clips:
            own = tuple(next(control)[1] for control in controls)  # same windows, so the same order
            yield LoadedSample(sample=by_window[window], frames=frames, controls=own)


def _picture(sample: Sample, dataset: DatasetConfig) -> LoadedSample:
    item, (width, height) = sample.item, sample.bucket
    layers = dataset.multiple_target
    pictures = [read_picture(path, alpha=layers) for path in (item.path, *item.targets)]
    if layers:
        pictures = [_with_alpha(picture) for picture in pictures]
    controls = tuple(
        resize_and_crop(read_picture(path, alpha=True), *size)[None]
        for path, size in zip(item.controls, sample.control_sizes, strict=True)
    )
    frames = np.stack([resize_and_crop(picture, width, height) for picture in pictures])
    return LoadedSample(sample=sample, frames=frames, controls=controls)


def _with_alpha(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3 or 4) -> (H, W, 4), opaque where there was no alpha."""
    if picture.shape[2] == 4:
        return picture
    return np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=2)


def _control_requests(
    request: ClipRequest, item: Item, dataset: DatasetConfig, shape: LatentShape
) -> Iterator[ClipRequest]:
    """Controls run beside their video: same windows, each at its own rate unless source_fps is declared.

    A folder of pictures has no rate; its pictures belong to the frames of the video one by one.
    """
    for path in item.controls:
        header = video_header(path)
        rate = FrameRate(dataset.source_fps or header.fps or item.fps, shape.fps)
        yield replace(request, path=path, rate=rate, promised=header.frames, pad=True)
