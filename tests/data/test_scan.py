"""Scanning: every file becomes an item or is named with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from made_media import SHAPE, dataset, video_shape, write_picture, write_video

from musubi_core.config import ConfigError
from musubi_core.data.items import Skipped
from musubi_core.data.scan import Scan, require_items, scan

KONTEXT = video_shape(architecture="edit_model", temporal=0, min_controls=1, max_controls=1)
EDIT = video_shape(architecture="edit_model", temporal=0, min_controls=0, max_controls=None)


def reasons(found: Scan) -> dict[str, str]:
    return {skip.path.name: skip.reason for skip in found.skipped}


def test_every_picture_is_used_or_named(tmp_path: Path):
    write_picture(tmp_path / "good.png", (64, 48), caption="  a cat\nsecond line ")
    write_picture(tmp_path / "Mixed.JpG", (30, 60))
    write_picture(tmp_path / "silent.png", caption=None)
    write_picture(tmp_path / "tiny.png", (64, 15))
    (write_picture(tmp_path / "latin.png").with_suffix(".txt")).write_bytes(b"caf\xe9")
    whole = write_picture(tmp_path / "cut.png", (300, 300))
    whole.write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty.txt").write_text("x")
    write_picture(tmp_path / "moving.gif")
    write_video(tmp_path / "clip.mkv", 2)
    (tmp_path / "style_vm.safetensors").touch()
    write_picture(tmp_path / "more" / "inner.png")
    found = scan(dataset(tmp_path), SHAPE)
    assert [item.path.name for item in found.items] == ["Mixed.JpG", "good.png"]
    good = found.items[1]
    assert (good.size, good.caption, good.stem, good.frames) == ((64, 48), "a cat\nsecond line", "good", 1)
    told = reasons(found)
    assert told["silent.png"] == "no caption: expected silent.txt beside it."
    assert told["tiny.png"] == "is 64x15 pixels; at least 16x16 are needed."
    assert "latin.txt is not UTF-8" in told["latin.png"]
    assert "damaged or cut off" in told["cut.png"]
    assert told["empty.png"] == "is empty (0 bytes)."
    assert ".gif pictures are not supported" in told["moving.gif"]
    assert told["clip.mkv"] == "is a video, and this dataset reads pictures."
    assert len(told) == 7
    assert any("sub-folders" in note and "more" in note for note in found.notes)


def test_captions_may_have_two_dots_in_their_extension(tmp_path: Path):
    write_picture(tmp_path / "a.png", caption=None)
    (tmp_path / "a.caption.txt").write_text("\ufeffwith a mark", encoding="utf-8")
    write_picture(tmp_path / "b.v2.png", caption=None)
    (tmp_path / "b.v2.caption.txt").write_text("dots in the name", encoding="utf-8")
    found = scan(dataset(tmp_path, caption_extension=".caption.txt"), SHAPE)
    assert [item.caption for item in found.items] == ["with a mark", "dots in the name"]


def test_videos_follow_the_same_caption_rule_as_pictures(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 5)
    write_video(tmp_path / "b.mkv", 5, caption=None)
    found = scan(dataset(tmp_path, target_frames=[5]), SHAPE)
    assert [item.path.name for item in found.items] == ["a.mkv"]
    assert reasons(found) == {"b.mkv": "no caption: expected b.txt beside it."}


def test_every_video_is_used_or_named(tmp_path: Path):
    write_video(tmp_path / "good.mkv", 30)
    write_video(tmp_path / "short.mkv", 8)
    write_video(tmp_path / "thin.mkv", 30, size=(64, 8))
    whole = write_video(tmp_path / "cut.mp4", 30, codec="libx264")
    whole.write_bytes(whole.read_bytes()[:500])
    write_picture(tmp_path / "still.png")
    found = scan(dataset(tmp_path, target_frames=[9, 25], frame_extraction="chunk"), SHAPE)
    assert [(item.path.name, item.frames, item.source_frames) for item in found.items] == [
        ("good.mkv", 30, 30)
    ]
    assert [(sample.start, sample.frames) for sample in found.samples] == [(0, 9), (9, 9), (18, 9), (0, 25)]
    told = reasons(found)
    assert told["short.mkv"] == "has 8 frames at 24 fps; the shortest clip asked for has 9."
    assert "at least 16x16" in told["thin.mkv"] and "cut.mp4" not in told["cut.mp4"]
    assert told["still.png"] == "is a picture, and this dataset reads videos."


def test_the_rate_of_the_file_counts_unless_one_is_declared(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 30, fps=48)
    found = scan(dataset(tmp_path, target_frames=[1]), SHAPE)
    assert (found.items[0].frames, found.items[0].fps) == (15, 48.0)
    assert any("1 videos of 48 fps are brought to 24 fps" in note for note in found.notes)
    declared = scan(dataset(tmp_path, target_frames=[1], source_fps=24), SHAPE)
    assert (declared.items[0].frames, declared.items[0].fps) == (30, 24.0)
    slow = scan(dataset(tmp_path, target_frames=[1], source_fps=12), SHAPE)
    assert slow.items[0].frames == 60


def test_a_video_without_a_rate_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import musubi_core.data.scan as module
    from musubi_core.data.video_file import VideoHeader

    write_video(tmp_path / "a.mkv", 5)
    monkeypatch.setattr(module, "video_header", lambda path: VideoHeader(size=(64, 48), frames=5, fps=0.0))
    assert "Set source_fps" in scan(dataset(tmp_path, target_frames=[1]), SHAPE).skipped[0].reason
    assert scan(dataset(tmp_path, target_frames=[1], source_fps=24), SHAPE).items


def test_full_extraction_needs_no_targets(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 31)
    found = scan(dataset(tmp_path, frame_extraction="full", max_frames=26), SHAPE)
    assert [(sample.start, sample.frames) for sample in found.samples] == [(0, 25)]


def test_equal_names_get_stems_of_their_own_and_share_captions(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "a.jpg")
    found = scan(dataset(tmp_path), SHAPE)
    stems = [item.stem for item in found.items]
    assert stems[0] == "a" and stems[1].startswith("a-") and len(stems[1]) == 10
    assert any("share their name" in note for note in found.notes)
    assert len({sample.latent_name("vm") for sample in found.samples}) == 2


def test_controls_are_found_sized_and_required(tmp_path: Path):
    control = tmp_path / "control"
    for name in ("a", "b", "c"):
        write_picture(tmp_path / f"{name}.png")
    write_picture(control / "a.png", (100, 50), caption=None)
    write_picture(control / "b.png", caption=None)
    write_picture(control / "b_1.png", caption=None)
    write_picture(control / "b_depth.png", caption=None)
    write_picture(control / "other.png", caption=None)
    keys = {"control_directory": str(control), "no_resize_control": True}
    found = scan(dataset(tmp_path, **keys), KONTEXT)
    assert [item.controls for item in found.items] == [(control / "a.png",)]
    assert found.samples[0].control_sizes == ((96, 48),)
    told = reasons(found)
    assert told["b.png"] == "has 2 control pictures; edit_model takes 1 here."
    assert told["c.png"] == f"has no control: expected c.png in {control}."
    assert any("b_depth.png" in note for note in found.notes) and any(
        "other.png" in note for note in found.notes
    )
    many = scan(dataset(tmp_path, **keys), EDIT)
    assert [len(item.controls) for item in many.items] == [1, 2]
    counted = scan(dataset(tmp_path, **keys, fp_1f_clean_indices=[0, 10]), KONTEXT)
    assert [item.path.name for item in counted.items] == ["b.png"]


def test_a_model_that_needs_a_control_names_the_items_without(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    assert "has 0 control pictures; edit_model takes 1" in scan(dataset(tmp_path), KONTEXT).skipped[0].reason


def test_controls_are_left_alone_where_the_model_takes_none(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    (tmp_path / "control").mkdir()
    found = scan(dataset(tmp_path, control_directory=str(tmp_path / "control")), SHAPE)
    assert len(found.items) == 1 and any("control_directory is ignored" in note for note in found.notes)


def test_layers_belong_to_the_picture_with_the_caption(tmp_path: Path):
    for name in ("a", "b"):
        write_picture(tmp_path / f"{name}.png")
    for name in ("a_10", "a_2", "b_0"):
        write_picture(tmp_path / f"{name}.png", caption=None)
    write_picture(tmp_path / "lonely.png")
    found = scan(dataset(tmp_path, multiple_target=True), SHAPE)
    assert {item.stem: [path.stem for path in item.targets] for item in found.items} == {
        "a": ["a_2", "a_10"],
        "b": ["b_0"],
    }
    assert list(reasons(found)) == ["lonely.png"] and "has no layers" in reasons(found)["lonely.png"]
    assert any("different numbers of layers (1 with 1, 1 with 2)" in note for note in found.notes)


def test_multiple_target_without_any_layer_is_refused(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"no picture has layers. Name them like a_0.png"):
        scan(dataset(tmp_path, multiple_target=True), SHAPE)


def test_a_model_of_pictures_refuses_videos(tmp_path: Path):
    with pytest.raises(ConfigError, match="edit_model knows pictures only"):
        scan(dataset(tmp_path, target_frames=[1]), EDIT)


def test_zero_usable_items_are_counted_by_reason(tmp_path: Path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", caption=None)
    write_picture(tmp_path / "tiny.png", (8, 8))
    with pytest.raises(ConfigError) as caught:
        require_items([scan(dataset(tmp_path), SHAPE)])
    text = str(caught.value)
    assert f"has 0 usable items of 4 files in {tmp_path}: 3 have no caption, 1 are too small." in text
    assert "Expected 0.png -> 0.txt. Add captions." in text


def test_an_empty_folder_is_refused_beside_a_good_dataset(tmp_path: Path):
    write_picture(tmp_path / "full" / "a.png")
    (tmp_path / "empty").mkdir()
    scans = [scan(dataset(tmp_path / name), SHAPE) for name in ("full", "empty")]
    require_items(scans[:1])
    with pytest.raises(ConfigError, match="has no pictures at all in"):
        require_items(scans)


def test_two_scans_give_the_same_samples_in_the_same_order(tmp_path: Path):
    for number in range(20):
        write_picture(tmp_path / f"{number}.png", (16 + number, 40))
    assert scan(dataset(tmp_path), SHAPE) == scan(dataset(tmp_path), SHAPE)


def test_reports_need_no_torch(tmp_path: Path):
    code = "import musubi_core.data.scan, musubi_core.data.report, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import musubi_core.data.scan as module

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write_picture(tmp_path / "a.png")
    monkeypatch.setattr(module, "picture_size", refuse)
    assert reasons(scan(dataset(tmp_path), SHAPE)) == {"a.png": "cannot be read: Permission denied."}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataset(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match="cannot be listed: Permission denied"):
        scan(config, SHAPE)


def test_skipped_files_have_a_group_for_counting():
    assert Skipped(path=Path("a"), reason="b").group
