"""Dataset files: every key of musubi-tuner's format, and an answer to every slip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musubi_core.config import ConfigError, options_of
from musubi_core.data.dataset import (
    GENERAL_KEYS,
    IMAGE_KEYS,
    SHARED_KEYS,
    VIDEO_KEYS,
    DatasetConfig,
    dataset_from,
    fingerprint_settings,
    item_options,
    read_datasets,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pictures", "videos", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.jsonl").write_text("", encoding="utf-8")
    return tmp_path


def toml(folder: Path, text: str) -> Path:
    path = folder / "dataset.toml"
    path.write_text(text.replace("$", folder.as_posix()), encoding="utf-8")
    return path


def test_every_option_belongs_to_exactly_one_table():
    parts = (GENERAL_KEYS, SHARED_KEYS, IMAGE_KEYS, VIDEO_KEYS)
    assert {info.name for info in options_of(DatasetConfig)} == frozenset().union(*parts)
    assert sum(map(len, parts)) == len(frozenset().union(*parts))


def test_a_toml_file_with_all_keys_is_read(folder: Path):
    pictures, videos = read_datasets(
        toml(
            folder,
            """
            [general]
            resolution = [960, 544]
            caption_extension = ".caption.txt"
            batch_size = 2
            enable_bucket = true
            bucket_no_upscale = true

            [[datasets]]
            image_directory = "$/pictures"
            cache_directory = "$/cache"
            control_directory = "$/control"
            control_resolution = 1024
            no_resize_control = true
            multiple_target = false
            fp_latent_window_size = 8
            fp_1f_clean_indices = [0, 10]
            fp_1f_target_index = 1
            fp_1f_no_post = true
            num_repeats = 3

            [[datasets]]
            video_directory = "$/videos"
            resolution = 512
            target_frames = [1, 25, 45]
            frame_extraction = "uniform"
            frame_sample = 4
            source_fps = 30
            batch_size = 1
            """,
        )
    )
    assert (pictures.resolution, pictures.control_resolution) == ((960, 544), (1024, 1024))
    assert (pictures.batch_size, pictures.num_repeats, pictures.caption_extension) == (2, 3, ".caption.txt")
    assert item_options(pictures) == {
        "fp_latent_window_size": 8,
        "fp_1f_clean_indices": [0, 10],
        "fp_1f_target_index": 1,
        "fp_1f_no_post": True,
    }
    assert (videos.resolution, videos.batch_size, videos.enable_bucket) == ((512, 512), 1, True)
    assert (videos.target_frames, videos.frame_extraction, videos.frame_sample) == ((1, 25, 45), "uniform", 4)
    assert videos.source_fps == 30.0 and isinstance(videos.source_fps, float)
    assert videos.cache_folder == videos.video_directory


def test_json_means_the_same_as_toml(folder: Path):
    data = {"general": {"resolution": 512}, "datasets": [{"image_directory": str(folder / "pictures")}]}
    path = folder / "dataset.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    (dataset,) = read_datasets(path)
    assert dataset.resolution == (512, 512) and dataset.image_directory == folder / "pictures"


def test_defaults_are_those_of_musubi_tuner(folder: Path):
    dataset = dataset_from({"video_directory": str(folder / "videos")})
    assert (dataset.resolution, dataset.batch_size, dataset.num_repeats) == ((960, 544), 1, 1)
    assert (dataset.target_frames, dataset.frame_extraction, dataset.max_frames) == ((1,), "head", 129)
    assert (dataset.enable_bucket, dataset.bucket_no_upscale, dataset.source_fps) == (False, False, None)
    assert dataset.caption_extension == ".txt"


def test_a_dataset_wins_over_general_which_wins_over_the_job(folder: Path):
    base = {"image_directory": str(folder / "pictures")}
    job = {"batch_size": 16, "num_repeats": None, "seed": 3}
    assert dataset_from(base, defaults=job).batch_size == 16
    assert dataset_from(base, general={"batch_size": 4}, defaults=job).batch_size == 4
    assert dataset_from({**base, "batch_size": 2}, general={"batch_size": 4}, defaults=job).batch_size == 2


def test_old_names_are_understood_and_the_new_name_wins(folder: Path):
    base = {"image_directory": str(folder / "pictures")}
    old = dataset_from(
        {**base, "qwen_image_edit_no_resize_control": True, "qwen_image_edit_control_resolution": [8, 9]}
    )
    assert old.no_resize_control and old.control_resolution == (8, 9)
    both = dataset_from({**base, "flux_kontext_no_resize_control": True, "no_resize_control": False})
    assert not both.no_resize_control
    assert any("flux_kontext_no_resize_control is an old name" in note for note in both.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[dataset]]\n", r"unknown table 'dataset'. Did you mean datasets\?"),
        ("[datasets]\nbatch_size = 1\n", r"write \[\[datasets\]\]"),
        ("", "has no datasets"),
        (
            "[general]\nresolutoin = 3\n[[datasets]]\n",
            r"\[general\]: unknown key 'resolutoin'. Did you mean resolution",
        ),
        ("[general]\nsource_fps = 3.0\n[[datasets]]\n", r"source_fps belongs in a \[\[datasets\]\] table"),
        ("[general]\nflux_kontext_no_resize_control = true\n[[datasets]]\n", "belongs in a"),
        ("[[datasets]]\nnum_repeats = 2\n", "names no media. Set one of image_directory"),
        ('[[datasets]]\nimage_directory = "$/pictures"\ntarget_frame = [1]\n', "unknown key 'target_frame'"),
        (
            '[[datasets]]\nimage_directory = "$/pictures"\ntarget_frames = [1]\n',
            "target_frames is for video datasets; image_directory makes this one of images",
        ),
        ("[[datasets]]\ntarget_frames = [1]\n", "names no media. Set video_directory or video_jsonl_file"),
        (
            '[[datasets]]\nimage_directory = "$/pictures"\nvideo_directory = "$/videos"\n',
            "but a dataset has one source",
        ),
        (
            '[[datasets]]\nimage_directory = "$/pictures"\nimage_jsonl_file = "$/list.jsonl"\n',
            "sets image_directory and image_jsonl_file, but a dataset has one source",
        ),
        ('[[datasets]]\nimage_directory = "$/nowhere"\n', "does not exist"),
        ('[[datasets]]\nimage_directory = "$/list.jsonl"\n', "is not a folder"),
        ('[[datasets]]\nimage_jsonl_file = "$/pictures"\n', "is not a file"),
        ('[[datasets]]\nimage_jsonl_file = "$/list.jsonl"\n', "has no cache_directory. Set cache_directory"),
        (
            '[[datasets]]\nimage_jsonl_file = "$/list.jsonl"\ncache_directory = "$/c"\n'
            'control_directory = "$/control"\n',
            "Name each control in the JSONL",
        ),
        (
            '[[datasets]]\nvideo_directory = "$/videos"\ntarget_frames = [0]\n',
            "target_frames = 0.*at least 1",
        ),
        (
            '[[datasets]]\nvideo_directory = "$/videos"\nframe_extraction = "heads"\n',
            "choose one of head, chunk",
        ),
        ('[[datasets]]\nvideo_directory = "$/videos"\nsource_fps = "30"\n', "expected a number"),
        ('[[datasets]]\nvideo_directory = "$/videos"\nsource_fps = 0\n', "source_fps"),
        (
            '[[datasets]]\nimage_directory = "$/pictures"\nresolution = [1, 2, 3]\n',
            r"one number or \[width, height\]",
        ),
        (
            '[[datasets]]\nimage_directory = "$/pictures"\nresolution = "512"\n',
            "expected a list, each a whole number",
        ),
        ('[[datasets]]\nimage_directory = "$/pictures"\nbatch_size = 0\n', "batch_size = 0"),
        ('[[datasets]]\nimage_directory = "$/pictures"\nenable_bucket = 1\n', "true or false"),
        ('[[datasets]]\nimage_directory = "C:\\sets\\cats"\n', "single quotes"),
    ],
)
def test_a_slip_is_named_with_its_remedy(folder: Path, text: str, expected: str):
    with pytest.raises(ConfigError, match=expected) as caught:
        read_datasets(toml(folder, text))
    assert "dataset.toml" in str(caught.value)


def test_two_datasets_never_share_a_cache_folder(folder: Path):
    text = '[[datasets]]\nimage_directory = "$/pictures"\n[[datasets]]\nvideo_directory = "$/videos"\n'
    with pytest.raises(ConfigError, match="share the cache folder"):
        read_datasets(toml(folder, text + 'cache_directory = "$/videos/../pictures"\n'))
    assert len(read_datasets(toml(folder, text))) == 2


@pytest.mark.parametrize("name", ["file that is not there.toml", "dataset.yaml"])
def test_a_file_that_cannot_be_a_dataset_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError):
        read_datasets(tmp_path / name)


@pytest.mark.parametrize("name", ["with spaces", 'd\'accord "q"', "猫の写真", "ümläut"])
def test_folders_may_have_any_name(tmp_path: Path, name: str):
    folder = tmp_path / name.replace('"', "")
    folder.mkdir()
    (tmp_path / "d.json").write_text(
        json.dumps({"datasets": [{"image_directory": str(folder)}]}), encoding="utf-8"
    )
    (dataset,) = read_datasets(tmp_path / "d.json")
    assert dataset.image_directory == folder


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"bucket_no_upscale": True}, "no effect without enable_bucket"),
        ({"frame_extraction": "uniform"}, "takes the head"),
        ({"frame_stride": 4}, 'frame_stride is only used by frame_extraction = "slide"'),
        ({"frame_extraction": "full", "target_frames": [25]}, "target_frames is not used"),
        ({"caption_extension": "txt"}, 'read as ".txt"'),
    ],
)
def test_keys_without_effect_are_noted(folder: Path, keys: dict, expected: str):
    dataset = dataset_from({"video_directory": str(folder / "videos"), **keys})
    assert any(expected in note for note in dataset.notes)
    assert not dataset_from({"video_directory": str(folder / "videos")}).notes


def test_the_summary_for_the_lora_tells_no_folders(folder: Path):
    dataset = dataset_from(
        {"video_directory": str(folder / "videos"), "control_directory": str(folder / "control")}
    )
    summary = dataset.summary()
    assert str(folder) not in json.dumps(summary)
    assert summary["video_directory"] == "videos" and summary["has_control"]
    assert {
        "frame_extraction",
        "frame_stride",
        "frame_sample",
        "target_frames",
        "max_frames",
        "source_fps",
    } <= set(summary)


def test_batch_size_and_repeats_are_no_part_of_the_fingerprint(folder: Path):
    base = {"image_directory": str(folder / "pictures")}
    settings = fingerprint_settings(dataset_from(base))
    assert fingerprint_settings(dataset_from({**base, "batch_size": 4, "num_repeats": 9})) == settings
    assert fingerprint_settings(dataset_from({**base, "fp_1f_target_index": 9})) != settings
    json.dumps(settings)
