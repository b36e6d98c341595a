"""Sizes that pictures and clips are brought to: aspect-ratio buckets of about equal area.

Sizes are (width, height). The list and the choice equal musubi-tuner's, so that its video caches, whose
names hold the bucket, are found again. One selector serves caching and training.
"""

from __future__ import annotations

import math
from functools import lru_cache

from musubi_core.config import ConfigError, LatentShape
from musubi_core.data.dataset_config import DatasetConfig

Size = tuple[int, int]


def floor_to(value: int, step: int) -> int:
    """The largest multiple of `step` that is not above `value`."""
    return value - value % step


@lru_cache(maxsize=64)
def bucket_list(resolution: Size, step: int) -> tuple[Size, ...]:
    """All buckets of the area of `resolution`, ascending; aspect ratios from about 1:4 to 4:1."""
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    found: set[Size] = set()
    for width in range(max(step, floor_to(side // 2, step)), side + step, step):
        height = floor_to(area // width, step)
        if height >= step:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def nearest_bucket(size: Size, resolution: Size, step: int) -> Size:
    """The bucket whose width / height is nearest to that of `size`; the first of equals."""
    ratio = size[0] / size[1]
    return min(bucket_list(resolution, step), key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))


def bucket_of(size: Size, dataset: DatasetConfig, shape: LatentShape) -> Size:
    """The bucket of a picture or video of `size`, which must be at least the pixel step on both sides."""
    if not dataset.enable_bucket:
        return dataset.resolution
    step = shape.pixel_step
    if dataset.bucket_no_upscale and size[0] * size[1] <= dataset.resolution[0] * dataset.resolution[1]:
        return floor_to(size[0], step), floor_to(size[1], step)
    return nearest_bucket(size, dataset.resolution, step)


def check_resolution(dataset: DatasetConfig, shape: LatentShape) -> None:
    """Raise ConfigError for a resolution that this architecture cannot use."""
    step = shape.pixel_step
    width, height = dataset.resolution
    if dataset.enable_bucket:
        if not bucket_list(dataset.resolution, step):
            raise ConfigError(
                f"{dataset.title}: resolution = {[width, height]} is too small for "
                f"{shape.architecture}, whose sizes are multiples of {step}. Use at least [{step}, {step}]."
            )
    elif width % step or height % step:
        near = [max(step, round(side / step) * step) for side in (width, height)]
        raise ConfigError(
            f"{dataset.title}: resolution = {[width, height]}, but {shape.architecture} needs "
            f"multiples of {step} where enable_bucket is false. Use {near}, or set enable_bucket = true."
        )


def size_for_area(size: Size, area: int, step: int) -> Size:
    """A size of about `area` pixels with the aspect ratio of `size`, both sides multiples of `step`.

    For control pictures with an area of their own: five widths around the ideal one are compared.
    """
    ratio = size[0] / size[1]
    ideal = floor_to(int(math.sqrt(area * ratio)), step)
    pairs = [
        (width, floor_to(area // width, step))
        for width in range(ideal - 2 * step, ideal + 2 * step + 1, step)
        if width >= step
    ]
    pairs = [pair for pair in pairs if pair[1] >= step]
    if not pairs:  # an extreme ratio: the short side cannot go below one step
        long = max(step, floor_to(area // step, step))
        return (long, step) if ratio > 1 else (step, long)
    return min(pairs, key=lambda pair: abs(pair[0] / pair[1] - ratio))


def control_size(size: Size, bucket: Size, dataset: DatasetConfig, step: int) -> Size:
    """The size of a control picture of `size` whose target lies in `bucket`.

    Always a multiple of `step`, also where musubi-tuner leaves a small control as it is.
    """
    kept = max(step, floor_to(size[0], step)), max(step, floor_to(size[1], step))
    if dataset.control_resolution is None:
        return kept if dataset.no_resize_control else bucket
    area = dataset.control_resolution[0] * dataset.control_resolution[1]
    if dataset.no_resize_control and size[0] * size[1] <= area:
        return kept
    return size_for_area(size, area, step)
