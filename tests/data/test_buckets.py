"""Buckets: check values of musubi-tuner's list and choice (reference data-and-training 2.1, 2.2, 1.6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_media import SHAPE

from musubi_core.config import ConfigError
from musubi_core.data.buckets import (
    bucket_list,
    bucket_of,
    check_resolution,
    control_size,
    nearest_bucket,
    size_for_area,
)
from musubi_core.data.dataset import DatasetConfig

CONFIG = DatasetConfig(image_directory=Path("pictures"), enable_bucket=True, where="datasets[0]")
SIDES = st.integers(1, 9000)


@pytest.mark.parametrize(
    ("resolution", "count", "first"),
    [
        ((960, 544), 47, (352, 1472)),
        ((1024, 1024), 65, (512, 2048)),
        ((512, 512), 33, None),
        ((1328, 1328), 85, None),
        ((640, 640), 41, None),
    ],
)
def test_the_list_has_the_published_length(resolution, count, first):
    buckets = bucket_list(resolution, 16)
    assert len(buckets) == count
    assert first is None or buckets[0] == first


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((1920, 1080), (960, 544), (960, 544)),
        ((1080, 1920), (960, 544), (544, 960)),
        ((1024, 1024), (960, 544), (720, 720)),
        ((640, 480), (960, 544), (832, 624)),
        ((512, 822), (960, 544), (560, 928)),  # comparing logarithms would give (576, 896)
        ((1920, 1080), (1024, 1024), (1360, 768)),
        ((3000, 1000), (1024, 1024), (1760, 592)),
        ((800, 600), (1024, 1024), (1184, 880)),
        ((832, 1216), (1024, 1024), (848, 1232)),
    ],
)
def test_a_picture_gets_the_published_bucket(size, resolution, bucket):
    assert nearest_bucket(size, resolution, 16) == bucket
    assert bucket_of(size, replace(CONFIG, resolution=resolution), SHAPE) == bucket


def test_no_upscale_keeps_small_pictures_small():
    config = replace(CONFIG, resolution=(1024, 1024), bucket_no_upscale=True)
    assert bucket_of((800, 600), config, SHAPE) == (800, 592)
    assert bucket_of((1000, 1000), config, SHAPE) == (992, 992)
    assert bucket_of((1920, 1080), config, SHAPE) == (1360, 768)


def test_without_buckets_everything_has_one_size_also_with_no_upscale():
    config = replace(CONFIG, enable_bucket=False, bucket_no_upscale=True)
    assert bucket_of((100, 700), config, SHAPE) == (960, 544)


@given(SIDES, SIDES, st.sampled_from([8, 16, 32, 64]))
def test_every_bucket_is_a_multiple_of_the_step_and_within_the_area(width, height, step):
    for bucket in bucket_list((width, height), step):
        assert min(bucket) >= step
        assert bucket[0] % step == bucket[1] % step == 0
        assert bucket[0] * bucket[1] <= width * height


@pytest.mark.parametrize(("resolution", "enabled"), [((8, 8), True), ((500, 300), False)])
def test_a_resolution_the_model_cannot_use_is_refused_with_one_it_can(resolution, enabled):
    config = replace(CONFIG, resolution=resolution, enable_bucket=enabled)
    with pytest.raises(ConfigError, match=r"\[16, 16\]|\[496, 304\]"):
        check_resolution(config, SHAPE)


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((1920, 1080), 1024**2, (1360, 768)),
        ((768, 1344), 384**2, (288, 512)),
        ((4000, 1000), 1024**2, (2048, 512)),
    ],
)
def test_a_separate_area_gives_the_published_size(size, area, expected):
    assert size_for_area(size, area, 16) == expected


@given(SIDES, SIDES, st.integers(1, 4096**2))
def test_a_separate_area_never_gives_an_empty_picture(width, height, area):
    found = size_for_area((width, height), area, 16)
    assert min(found) >= 16 and found[0] % 16 == found[1] % 16 == 0


@pytest.mark.parametrize(
    ("no_resize", "resolution", "expected"),
    [
        (False, None, (640, 640)),  # the target's
        (False, (1024, 1024), (1360, 768)),
        (True, None, (1920, 1072)),
        (True, (2024, 2024), (1920, 1072)),  # small enough to be kept, but on the step
        (True, (1024, 1024), (1360, 768)),
    ],
)
def test_controls_follow_their_two_keys(no_resize, resolution, expected):
    config = replace(CONFIG, no_resize_control=no_resize, control_resolution=resolution)
    assert control_size((1920, 1080), (640, 640), config, 16) == expected
