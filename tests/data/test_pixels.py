"""Samples as pixels: frames, layers and controls at the sizes their sample says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_media import SHAPE, dataset, greys, near, video_shape, write_picture, write_video
from PIL import Image

from musubi_core.data.dataset import DatasetConfig
from musubi_core.data.pixels import LoadedSample, load_item_samples
from musubi_core.data.scan import scan
from musubi_core.errors import BadFileError

CONTROLLED = video_shape(max_controls=None)


def load(config: DatasetConfig, shape=SHAPE) -> list[LoadedSample]:
    found = scan(config, shape)
    return [
        loaded
        for item in found.items
        for loaded in load_item_samples(
            item, [each for each in found.samples if each.item is item], config, shape
        )
    ]


def test_a_picture_is_one_frame_of_its_bucket(tmp_path: Path):
    write_picture(tmp_path / "a.png", (128, 96))
    (loaded,) = load(dataset(tmp_path))
    width, height = loaded.sample.bucket
    assert loaded.frames.shape == (1, height, width, 3) and loaded.controls == ()


def test_layers_are_stacked_with_alpha(tmp_path: Path):
    write_picture(tmp_path / "a.png", (64, 64))
    Image.new("RGBA", (64, 64), (1, 2, 3, 100)).save(tmp_path / "a_0.png")
    (loaded,) = load(dataset(tmp_path, multiple_target=True))
    assert loaded.frames.shape == (2, 64, 64, 4)
    assert (loaded.frames[0, ..., 3] == 255).all()
    assert loaded.frames[1, 5, 5].tolist() == [1, 2, 3, 100]


def test_control_pictures_keep_their_alpha_and_their_own_size(tmp_path: Path):
    write_picture(tmp_path / "a.png", (64, 64))
    (tmp_path / "control").mkdir()
    Image.new("RGBA", (101, 50), (1, 2, 3, 100)).save(tmp_path / "control" / "a.png")
    write_picture(tmp_path / "control" / "a_1.png", (50, 101), caption=None)
    keys = {"control_directory": str(tmp_path / "control"), "no_resize_control": True}
    (loaded,) = load(dataset(tmp_path, **keys), CONTROLLED)
    assert [control.shape for control in loaded.controls] == [(1, 48, 96, 4), (1, 96, 48, 3)]


@pytest.mark.parametrize("codec", ["a.mkv:ffv1", "a.mp4:libx264", "a.webm:libvpx-vp9"])
def test_clips_hold_the_frames_of_their_window(tmp_path: Path, codec: str):
    name, codec = codec.split(":")
    write_video(tmp_path / name, 30, codec=codec)
    for loaded in load(dataset(tmp_path, target_frames=[1, 9], frame_extraction="slide", frame_stride=7)):
        sample = loaded.sample
        assert near(
            greys(loaded.frames), list(range(sample.start, sample.start + sample.frames)), tolerance=4
        )
        assert loaded.frames.shape[1:] == (sample.bucket[1], sample.bucket[0], 3)


def test_a_control_video_runs_beside_its_video(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 30)
    write_video(tmp_path / "control" / "a.mkv", 20, fps=48, size=(80, 80))  # faster: ten frames at 24 fps
    keys = {"target_frames": [9], "frame_extraction": "chunk", "control_directory": str(tmp_path / "control")}
    first, second, third = load(dataset(tmp_path, **keys), CONTROLLED)
    for loaded in (first, second, third):
        assert loaded.controls[0].shape == loaded.frames.shape
    assert near(greys(first.controls[0]), list(range(0, 18, 2)))
    assert near(greys(second.controls[0]), [18, *[19] * 8])
    assert near(greys(third.controls[0]), [19] * 9)


def test_control_pictures_of_a_folder_go_with_the_frames_of_the_file(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 20, fps=48)
    for number in range(20):
        folder = tmp_path / "control" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (20 + 4 * number,) * 3).save(folder / f"{number:03d}.png")
    keys = {"target_frames": [9], "control_directory": str(tmp_path / "control")}
    (loaded,) = load(dataset(tmp_path, **keys), CONTROLLED)
    assert near(greys(loaded.controls[0]), list(range(0, 18, 2)))
    assert near(greys(loaded.frames), list(range(0, 18, 2)))


def test_a_file_damaged_after_the_scan_is_named(tmp_path: Path):
    path = write_picture(tmp_path / "a.png", (64, 64))
    config = dataset(tmp_path)
    found = scan(config, SHAPE)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadFileError, match=r"a\.png"):
        list(load_item_samples(found.items[0], found.samples, config, SHAPE))


def test_a_mp4_whose_frames_are_broken_is_named(tmp_path: Path):
    random = np.random.default_rng(1)
    path = write_video(
        tmp_path / "a.mp4", 40, codec="libx264", grey=lambda index: int(random.integers(0, 256))
    )
    config = dataset(tmp_path, target_frames=[37])
    found = scan(config, SHAPE)
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 900, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=r"a\.mp4"):
        list(load_item_samples(found.items[0], found.samples, config, SHAPE))
