"""Windows and frame rates: check values of reference data-and-training 1.10 and 1.11."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musubi_core.config import ConfigError
from musubi_core.data.clips import FrameRate, round_length, round_targets, windows
from musubi_core.data.dataset import DatasetConfig
from musubi_core.data.dataset_config import FRAME_EXTRACTIONS

CONFIG = DatasetConfig(video_directory=Path("videos"))
RATES = st.sampled_from(
    [8.0, 12.0, 15.0, 16.0, 23.976, 24.0, 25.0, 29.97, 30000 / 1001, 30.0, 50.0, 59.94, 120.0]
)


def starts(mode: str, targets: tuple[int, ...], frames: int = 40, **keys: int) -> dict[int, list[int]]:
    config = replace(CONFIG, frame_extraction=mode, **keys)
    found: dict[int, list[int]] = {}
    for start, length in windows(frames, config, targets, 4):
        found.setdefault(length, []).append(start)
    return found


def test_the_published_windows_of_forty_frames():
    assert starts("head", (1, 13, 25, 41)) == {1: [0], 13: [0], 25: [0]}
    assert starts("chunk", (13, 25)) == {13: [0, 13, 26], 25: [0]}
    assert starts("chunk", (1,))[1] == list(range(40))
    assert starts("slide", (1, 13, 25), frame_stride=10) == {1: [0, 10, 20, 30], 13: [0, 10, 20], 25: [0, 10]}
    assert starts("uniform", (1, 13, 25), frame_sample=4) == {
        1: [0, 13, 26, 39],
        13: [0, 9, 18, 27],
        25: [0, 5, 10, 15],
    }


@pytest.mark.parametrize(("frames", "length"), [(20, 17), (25, 25), (35, 29), (1, 1), (4, 1)])
def test_full_takes_all_that_the_vae_accepts(frames: int, length: int):
    assert starts("full", (), frames, max_frames=31) == {length: [0]}


def test_uniform_cuts_no_window_twice():
    assert starts("uniform", (13,), 13, frame_sample=4) == {13: [0]}
    assert starts("uniform", (13,), 14, frame_sample=4) == {13: [0, 1]}


def test_uniform_with_one_sample_is_the_head():
    assert starts("uniform", (13,), frame_sample=1) == {13: [0]}


@given(
    st.sampled_from(FRAME_EXTRACTIONS),
    st.integers(0, 200),
    st.sets(st.integers(0, 20)),
    *[st.integers(1, 30)] * 3,
)
def test_windows_are_distinct_and_inside_the_video(mode, frames, counts, stride, sample, most):
    targets = tuple(sorted(4 * count + 1 for count in counts))
    config = replace(CONFIG, frame_extraction=mode, frame_stride=stride, frame_sample=sample, max_frames=most)
    found = windows(frames, config, targets, 4)
    assert len(set(found)) == len(found)
    assert all(start >= 0 and length >= 1 and start + length <= frames for start, length in found)


def test_lengths_are_rounded_down_and_the_neighbours_named():
    found, notes = round_targets([80, 2, 24, 26, 25, 24], 4, where="datasets[0]")
    assert found == (1, 21, 25, 77)
    assert any("24 became 21" in note and "21 or 25" in note for note in notes)
    assert round_targets([81], 4, where="")[1] == []
    assert [round_length(frames, 8) for frames in (1, 8, 9, 16, 17)] == [1, 1, 9, 9, 17]


@pytest.mark.parametrize("target", [0, -3])
def test_a_length_below_one_is_refused(target: int):
    with pytest.raises(ConfigError, match=f"target_frames has {target}"):
        round_targets([target], 4, where="datasets[0]")


@pytest.mark.parametrize(
    ("source", "target", "frames"),
    [
        # musubi-tuner's floating-point sums give 16 instead of 15, 11 instead of 10 and 7 instead of 6
        (30, 16, [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21]),
        (60, 24, [0, 3, 5, 8, 10, 13, 15, 18]),
        (24, 16, [0, 2, 3, 5, 6, 8, 9, 11]),
        (12, 24, [0, 0, 1, 1, 2, 2]),
        (16, 24, [0, 0, 1, 2, 2, 3]),
        (24, 24, [0, 1, 2, 3]),
        (24000 / 1001, 24, [0, 1, 2, 3]),
    ],
)
def test_frames_are_taken_at_the_published_places(source: float, target: float, frames: list[int]):
    rate = FrameRate(source, target)
    assert [rate.source_frame(number) for number in range(len(frames))] == frames


def test_a_cinema_rate_is_no_reason_to_repeat_frames():
    assert FrameRate(24000 / 1001, 24.0).unchanged and FrameRate(24000 / 1001, 24.0).count(5000) == 5000
    assert not FrameRate(25, 24).unchanged


@given(RATES, RATES, st.integers(1, 3000))
def test_conversion_stays_inside_the_file_and_keeps_its_length(source: float, target: float, frames: int):
    rate = FrameRate(source, target)
    count = rate.count(frames)
    places = [rate.source_frame(number) for number in range(count + 1)]
    assert places == sorted(places) and places[0] == 0
    assert places[-2] <= frames - 1 < places[-1]  # the last frame is inside, one more would not be
    if not rate.unchanged:
        assert abs(Fraction(count) / Fraction(target) - Fraction(frames) / Fraction(source)) < 1 / min(
            Fraction(source), Fraction(target)
        ) + Fraction(1, 100)


def test_a_slow_file_gives_windows_of_full_length():
    rate = FrameRate(12, 24)
    assert starts("head", (25,), rate.count(13)) == {25: [0]}
