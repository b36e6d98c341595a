"""JSONL datasets: one object per line, wrong lines named by their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_media import SHAPE, video_shape, write_picture, write_video

from musubi_core.config import ConfigError
from musubi_core.data.dataset import DatasetConfig, dataset_from
from musubi_core.data.scan import scan


def listed(tmp_path: Path, *lines: object, kind: str = "image", **keys: object) -> DatasetConfig:
    """A dataset of these lines; texts are written as they are."""
    path = tmp_path / "list.jsonl"
    text = "\n".join(
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    )
    path.write_text(text, encoding="utf-8")
    table = {f"{kind}_jsonl_file": str(path), "cache_directory": str(tmp_path / "cache"), "resolution": 64}
    return dataset_from({**table, "enable_bucket": True, **keys})


def test_pictures_and_captions_come_from_the_lines(tmp_path: Path):
    first, second = (str(write_picture(tmp_path / name, caption=None)) for name in ("b.png", "猫 1.png"))
    dataset = listed(
        tmp_path,
        {"image_path": first, "caption": " two\nlines \u2028 "},
        "",
        {"image_path_0": second, "caption": ""},
        "",
    )
    found = scan(dataset, SHAPE)
    assert [(item.path, item.caption) for item in found.items] == [
        (Path(first), "two\nlines"),
        (Path(second), ""),
    ]
    assert "1 captions are empty." in found.notes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"image_path": "a.png", "caption": "x"', "line 2 is not valid JSON"),
        ("[1]", "line 2 holds a list"),
        (
            {"image_paht": "a.png", "caption": "x"},
            'line 2 has no "image_path". Did you mean it by image_paht',
        ),
        ({"image_path": 3, "caption": "x"}, "line 2: image_path is 3; expected a text"),
        ({"image_path": "", "caption": "x"}, "line 2: image_path is empty"),
        ('{"image_path": "a.png", "caption": "\\ud800"}', "line 2: caption has half of a surrogate pair"),
        ({"image_path": "a.png", "caption": ["x"]}, "line 2: caption is"),
        (
            {"image_path": "a.png", "caption": "x", "control_path": "a", "control_path_0": "b"},
            "line 2 gives control 0 twice",
        ),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: object, expected: str):
    dataset = listed(tmp_path, {"image_path": "a.png", "caption": "x"}, line)
    with pytest.raises(ConfigError, match=expected):
        scan(dataset, video_shape(max_controls=None))


def test_a_missing_file_or_caption_is_skipped_and_the_rest_is_used(tmp_path: Path):
    good = write_picture(tmp_path / "a.png", caption=None)
    dataset = listed(
        tmp_path,
        {"image_path": str(good), "caption": "x", "score": 3},
        {"image_path": str(tmp_path / "gone.png"), "caption": "x"},
        {"image_path": str(good)},
    )
    found = scan(dataset, SHAPE)
    assert [item.path for item in found.items] == [good]
    reasons = {skip.path.name: skip.reason for skip in found.skipped}
    assert reasons["gone.png"] == "does not exist."
    assert "has no caption" in reasons["a.png"] and "line 3" in reasons["a.png"]
    assert any("not used: score" in note for note in found.notes)


def test_controls_are_taken_in_the_order_of_their_numbers(tmp_path: Path):
    media = {name: str(write_picture(tmp_path / f"{name}.png", caption=None)) for name in "abcd"}
    line = {
        "image_path": media["a"],
        "caption": "x",
        "control_path_10": media["b"],
        "control_path_2": media["c"],
    }
    one = {"image_path": media["d"], "caption": "x", "control_path": media["b"]}
    first, second = scan(listed(tmp_path, line, one), video_shape(max_controls=None)).items
    assert [path.stem for path in first.controls] == ["c", "b"]
    assert [path.stem for path in second.controls] == ["b"]


def test_when_one_line_has_a_control_all_need_one(tmp_path: Path):
    media = [str(write_video(tmp_path / f"{name}.mkv", 5, caption=None)) for name in "ab"]
    lines = [
        {"video_path": media[0], "caption": "x", "control_path": media[1]},
        {"video_path": media[1], "caption": "x"},
    ]
    found = scan(listed(tmp_path, *lines, kind="video"), video_shape(max_controls=1))
    assert [item.path.stem for item in found.items] == ["a"]
    assert "where other lines have one" in found.skipped[0].reason


def test_targets_are_read_until_the_first_missing_number(tmp_path: Path):
    media = [str(write_picture(tmp_path / f"{number}.png", caption=None)) for number in range(4)]
    line = {
        "image_path_0": media[0],
        "image_path_1": media[1],
        "image_path_2": media[2],
        "image_path_4": media[3],
        "caption": "x",
    }
    (item,) = scan(listed(tmp_path, line, multiple_target=True), SHAPE).items
    assert [path.stem for path in item.targets] == ["1", "2"]


def test_equal_names_from_different_folders_get_stems_of_their_own(tmp_path: Path):
    paths = [str(write_picture(tmp_path / folder / "a.png", caption=None)) for folder in ("x", "y")]
    lines = [{"image_path": path, "caption": "c"} for path in (*paths, paths[1], paths[1])]
    stems = [item.stem for item in scan(listed(tmp_path, *lines), SHAPE).items]
    assert stems[0] == "a" and len(set(stems)) == 4 and all(stem.startswith("a-") for stem in stems[1:])
    turned = [item.stem for item in scan(listed(tmp_path, *lines), SHAPE).items]
    assert turned == stems


def test_a_folder_of_pictures_may_be_a_video(tmp_path: Path):
    for number in range(6):
        write_picture(tmp_path / "clip" / f"{number}.png", caption=None)
    dataset = listed(
        tmp_path, {"video_path": str(tmp_path / "clip"), "caption": "x"}, kind="video", target_frames=[5]
    )
    (item,) = scan(dataset, SHAPE).items
    assert (item.stem, item.frames, item.fps, item.source_frames) == ("clip", 6, 24.0, 6)
