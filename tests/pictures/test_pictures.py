from __future__ import annotations

import math

import numpy as np
import pytest

from musubi_core.pictures.grid import labelled_grid
from musubi_core.pictures.plot import COLOURS, bars, curves, smooth, ticks


def coloured(image, colour):
    return np.argwhere((np.asarray(image) == colour).all(axis=-1))


def test_a_falling_curve_is_drawn_falling():
    image = curves({"loss": [(0, 1.0), (100, 0.0)]}, title="loss")
    spots = coloured(image, COLOURS[0])
    spots = spots[spots[:, 1] < 900]  # left of the legend
    left, right = spots[spots[:, 1] < 300], spots[spots[:, 1] > 700]
    assert left[:, 0].mean() < right[:, 0].mean()  # rows count downwards


def test_a_value_that_is_not_finite_leaves_a_gap_and_never_raises():
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.5), (4, 0.4)]
    assert len(coloured(curves({"loss": points}, title=""), COLOURS[0])) > 0
    assert [x for x, _ in smooth(points)] == [0, 3, 4]


@pytest.mark.parametrize("points", [[], [(5, 2.0)], [(0, 0.0), (1, 0.0)]])
def test_degenerate_series_still_give_a_picture(points):
    assert curves({"loss": points}, title="t").size == (960, 540)


def test_the_highest_bin_is_the_highest_bar():
    spots = coloured(bars([1, 5, 2], title=""), COLOURS[0])
    highest = spots[spots[:, 0].argmin()]
    assert 79 + 856 / 3 <= highest[1] <= 80 + 2 * 856 / 3


def test_ticks_are_round_and_inside():
    assert ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert ticks(0.013, 0.029) == pytest.approx([0.015, 0.02, 0.025])


def test_smoothing_a_constant_changes_nothing():
    assert [y for _, y in smooth([(i, 0.25) for i in range(9)])] == pytest.approx([0.25] * 9)


def test_a_grid_shows_each_picture_in_its_own_cell():
    red, blue = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    sheet = np.asarray(labelled_grid([[red, blue]], columns=["base", "LoRA"], row_titles=["a cat"]))
    assert sheet[100, 50].tolist() == [255, 0, 0]
    assert sheet[100, 250].tolist() == [0, 0, 255]


def test_titles_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="2 column titles"):
        labelled_grid([[np.zeros((2, 2, 3), np.uint8)]], columns=["a", "b"], row_titles=["x"])
