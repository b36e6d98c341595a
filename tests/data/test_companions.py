"""Which files belong to which, by name."""

from __future__ import annotations

from pathlib import Path

from made_media import write_picture, write_video

from musubi_core.data.companions import control_videos, numbered


def names(*texts: str) -> list[Path]:
    return [Path(text) for text in texts]


def test_controls_are_ordered_exact_first_then_by_number():
    found = numbered(["a"], names("a_10.png", "a_2.png", "a.jpg", "a_001.png"))
    assert found.by_stem["a"] == tuple(names("a.jpg", "a_001.png", "a_2.png", "a_10.png"))


def test_a_longer_stem_keeps_its_files_from_a_shorter_one():
    found = numbered(["a", "a_1"], names("a_0.png", "a_1.png", "a_1_0.png", "a.png"))
    assert found.by_stem == {
        "a": tuple(names("a.png", "a_0.png")),
        "a_1": tuple(names("a_1.png", "a_1_0.png")),
    }


def test_what_is_no_number_and_what_belongs_to_nobody_is_told():
    found = numbered(["a", "b"], names("a_mask.png", "ab.png", "b.png"))
    assert (found.odd, found.free) == (tuple(names("a_mask.png")), tuple(names("ab.png")))
    assert found.by_stem == {"a": (), "b": tuple(names("b.png"))}


def test_a_control_video_is_found_by_name_then_folder_then_stem(tmp_path: Path):
    control = tmp_path / "control"
    for name in ("a.mkv", "c.mkv", "d.mkv"):
        write_video(control / name, 2)
    write_picture(control / "a" / "0.png")
    write_picture(control / "b" / "0.png")
    write_picture(control / "b.png")
    found = control_videos(names("v/a.mkv", "v/b.mkv", "v/c.mp4", "v/e.mp4"), control)
    assert found == {
        Path("v/a.mkv"): control / "a.mkv",
        Path("v/b.mkv"): control / "b",
        Path("v/c.mp4"): control / "c.mkv",
    }
