"""Clips out of videos: the right frames, each resized once, few of them held."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_media import greys, near, write_picture, write_video

import musubi_core.data.clip_reader as module
from musubi_core.data.clip_reader import ClipRequest, cut, read_clips
from musubi_core.data.clips import FrameRate
from musubi_core.errors import BadFileError

SAME = FrameRate(24, 24)


def request(
    path: Path, windows, *, rate: FrameRate = SAME, promised: int = 30, pad: bool = False
) -> ClipRequest:
    return ClipRequest(path=path, windows=windows, rate=rate, size=(32, 32), promised=promised, pad=pad)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mkv", 30)


def test_each_window_holds_its_own_frames(video: Path):
    windows = [(0, 5), (0, 13), (4, 9), (17, 13), (29, 1)]
    found = dict(read_clips(request(video, windows)))
    assert set(found) == set(windows)
    for (start, length), clip in found.items():
        assert clip.shape == (length, 32, 32, 3) and clip.dtype == np.uint8
        assert near(greys(clip), list(range(start, start + length)))


def test_a_faster_file_is_thinned_and_a_slower_one_repeats(video: Path):
    thinned = dict(read_clips(request(video, [(0, 9)], rate=FrameRate(60, 24))))
    assert near(greys(thinned[0, 9]), [0, 3, 5, 8, 10, 13, 15, 18, 20])
    repeated = dict(read_clips(request(video, [(1, 5)], rate=FrameRate(12, 24))))
    assert near(greys(repeated[1, 5]), [0, 1, 1, 2, 2])


def test_each_needed_frame_is_resized_once_and_no_other(video: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = module.resize_and_crop
    monkeypatch.setattr(
        module, "resize_and_crop", lambda picture, *size: seen.append(1) or real(picture, *size)
    )
    list(read_clips(request(video, [(2, 5), (3, 5), (20, 1)])))
    assert len(seen) == 7  # 2..7 and 20
    seen.clear()
    list(read_clips(request(video, [(0, 9)], rate=FrameRate(12, 24))))
    assert len(seen) == 5  # 0..4, shown twice each


def test_decoding_stops_after_the_last_needed_frame(video: Path, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []

    def counting(path: Path) -> Iterator:
        for index, frame in enumerate(real(path)):
            decoded.append(index)
            yield frame

    real = module.decode
    monkeypatch.setattr(module, "decode", counting)
    list(read_clips(request(video, [(0, 5)])))
    assert decoded == [0, 1, 2, 3, 4]


WINDOWS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=12, unique=True)


@given(WINDOWS)
def test_windows_come_in_the_order_of_their_ends_and_complete(windows):
    needed = sorted({start + offset for start, length in windows for offset in range(length)})
    frames = ((number, np.full((1, 1, 3), number, np.uint8)) for number in needed)
    found = list(cut(frames, windows))
    assert [window for window, _ in found] == sorted(windows, key=lambda window: (sum(window), window[0]))
    for (start, length), clip in found:
        assert clip[:, 0, 0, 0].tolist() == list(range(start, start + length))


def test_only_frames_of_open_windows_are_held():
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Picture(np.ndarray):
        __hash__ = object.__hash__

    def frames() -> Iterator[tuple[int, np.ndarray]]:
        for number in range(500):
            picture = np.zeros((2, 2, 3), np.uint8).view(Picture)
            alive.add(picture)
            yield number, picture

    for _ in cut(frames(), [(start, 9) for start in range(0, 490, 4)]):
        most = max(most, len(alive))
    assert most <= 10  # nine of the widest window and the one being read


def test_a_long_clip_is_never_whole_in_memory(tmp_path: Path):
    path = write_video(tmp_path / "long.mp4", 900, size=(160, 120), codec="mpeg4")
    whole = 900 * 160 * 120 * 3
    frame = 160 * 120 * 3
    windows = [(start, 9) for start in range(0, 880, 100)]
    asked = ClipRequest(path=path, windows=windows, rate=SAME, size=(160, 112), promised=900)
    tracemalloc.start()
    for _ in read_clips(asked):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * frame < whole / 10


def test_fewer_frames_than_promised_is_an_error_with_both_numbers(video: Path):
    with pytest.raises(BadFileError, match=r"a.mkv: 30 frames could be decoded, but its packets promise 45"):
        list(read_clips(request(video, [(0, 9), (36, 9)], promised=45)))


def test_complete_windows_are_delivered_before_the_error(video: Path):
    clips = read_clips(request(video, [(0, 9), (36, 9)], promised=45))
    assert next(clips)[0] == (0, 9)
    with pytest.raises(BadFileError):
        next(clips)


def test_a_short_control_repeats_its_last_frame(video: Path):
    found = dict(read_clips(request(video, [(26, 9), (40, 2)], pad=True)))
    assert near(greys(found[26, 9]), [26, 27, 28, 29, 29, 29, 29, 29, 29])
    assert near(greys(found[40, 2]), [29, 29])


def test_a_file_of_noise_is_refused_not_shown_grey(tmp_path: Path):
    random = np.random.default_rng(0)
    path = write_video(
        tmp_path / "a.mp4", 48, codec="libx264", grey=lambda index: int(random.integers(0, 256))
    )
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4 + 700
    end = data.index(b"moov") - 4
    data[start:end] = bytes(random.integers(0, 256, end - start, np.uint8))
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=r"a.mp4"):
        list(read_clips(request(path, [(0, 45)], promised=48)))


def test_a_frame_that_the_decoder_had_to_patch_up_is_refused(video: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "decode", lambda path: (SimpleNamespace(is_corrupt=True) for _ in range(30)))
    with pytest.raises(BadFileError, match=r"a\.mkv: frame 3 is damaged"):
        list(read_clips(request(video, [(3, 5)])))


def test_pictures_in_a_folder_are_frames(tmp_path: Path):
    for index in range(5):
        write_picture(tmp_path / f"{index}.png", (40 + index, 40), caption=None)
    found = dict(read_clips(request(tmp_path, [(0, 5)], promised=5)))
    assert found[0, 5].shape == (5, 32, 32, 3)
