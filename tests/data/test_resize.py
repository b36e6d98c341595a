"""Resizing: areas against a brute-force average, the rest against PIL."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from musubi_core.data.resize import resize_and_crop


def brute_force_area(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The definition: each new pixel is the mean of the old area it covers, old pixels cut where needed."""
    old_height, old_width, channels = picture.shape
    result = np.zeros((height, width, channels))
    for row in range(height):
        top, bottom = row * old_height / height, (row + 1) * old_height / height
        for column in range(width):
            left, right = column * old_width / width, (column + 1) * old_width / width
            for y in range(int(top), min(old_height, int(np.ceil(bottom)))):
                for x in range(int(left), min(old_width, int(np.ceil(right)))):
                    share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    result[row, column] += share * picture[y, x]
    return result / (old_width / width * old_height / height)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 3), st.integers(3, 4))
def test_shrinking_averages_the_covered_area(width: int, height: int, times: int, channels: int):
    picture = noise(height * times + height // 2, width * times + width // 2, channels)
    scale = max(width / picture.shape[1], height / picture.shape[0])
    new_width, new_height = int(picture.shape[1] * scale + 0.5), int(picture.shape[0] * scale + 0.5)
    left, top = (new_width - width) // 2, (new_height - height) // 2
    expected = brute_force_area(picture, new_width, new_height)[top : top + height, left : left + width]
    found = resize_and_crop(picture, width, height)
    assert found.shape == (height, width, channels) and found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.501  # rounding, nothing else


def test_a_known_average():
    picture = np.array([[0, 10, 20], [30, 40, 50], [60, 70, 80]], np.uint8)[..., None].repeat(3, 2)
    # 3 -> 2: each new pixel covers 1.5 old ones
    expected = np.array([[(0 + 5 + 15 + 10) / 2.25, (5 + 20 + 10 + 25) / 2.25]])
    assert np.array_equal(resize_and_crop(picture, 2, 2)[:1, :, 0], np.rint(expected).astype(np.uint8))


@given(st.integers(1, 400), st.data())
@settings(max_examples=30)
def test_an_even_picture_stays_even(old: int, data: st.DataObject):
    new = data.draw(st.integers(1, old))
    picture = np.full((old, old, 3), 201, np.uint8)
    assert (resize_and_crop(picture, new, new) == 201).all()


def test_a_picture_of_the_right_size_is_not_touched():
    picture = noise(32, 48)
    assert resize_and_crop(picture, 48, 32) is picture


def test_enlarging_is_pils_lanczos_then_a_centre_crop():
    picture = noise(30, 40)
    enlarged = np.asarray(Image.fromarray(picture).resize((80, 60), Image.Resampling.LANCZOS))
    assert np.array_equal(resize_and_crop(picture, 64, 60), enlarged[:, 8:72])
    assert np.array_equal(resize_and_crop(picture, 80, 40), enlarged[10:50])


def test_cropping_without_scaling_keeps_the_pixels():
    picture = noise(50, 37)
    assert np.array_equal(resize_and_crop(picture, 37, 41), picture[4:45])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_extreme_sizes_work(size: tuple[int, int]):
    assert resize_and_crop(noise(7, 900), *size).shape == (size[1], size[0], 3)
