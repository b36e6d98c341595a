"""--debug_mode: previews as files or letters, told through events, nothing cached."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from made_media import SHAPE, dataset, write_picture, write_video
from PIL import Image

from musubi_core.config import ConfigError
from musubi_core.data.console_art import console_lines
from musubi_core.data.preview import PreviewRequest, preview
from musubi_core.data.scan import scan
from musubi_core.data.video_file import decode, video_header
from musubi_core.events import FileWritten, Note, Preview, Warned


def test_image_writes_contact_sheets_beside_the_caches(tmp_path: Path):
    for number in range(18):
        write_picture(tmp_path / f"{number:02d}.png", caption="a cät 猫 " * 30)
    events: list = []
    assert preview([scan(dataset(tmp_path), SHAPE)], PreviewRequest(mode="image"), events.append) == []
    files = [event.path for event in events if isinstance(event, FileWritten)]
    assert len(files) == 2 and all(path.parent == tmp_path / "preview" for path in files)
    assert Image.open(files[0]).size[0] == 4 * 256
    assert len([event for event in events if isinstance(event, Preview)]) == 2
    again = scan(dataset(tmp_path), SHAPE)
    assert len(again.items) == 18 and not again.skipped and not again.notes


def test_video_writes_clips_and_pictures_named_like_their_caches(tmp_path: Path):
    write_video(tmp_path / "a.mkv", 9, size=(64, 64))
    found = scan(dataset(tmp_path, target_frames=[1, 9]), SHAPE)
    preview([found], PreviewRequest(mode="video", folder=tmp_path / "out"), lambda event: None)
    clip, picture = (
        tmp_path / "out" / "a_00000-009_0064x0064_vm.mp4",
        tmp_path / "out" / "a_00000-001_0064x0064_vm.jpg",
    )
    assert (video_header(clip).frames, video_header(clip).fps) == (9, 24.0)
    assert len(list(decode(clip))) == 9
    assert Image.open(picture).size == (64, 64)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {clip.name, picture.name}


def test_console_tells_pictures_as_lines_of_letters(tmp_path: Path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", caption=f"caption {number}")
    events: list = []
    request = PreviewRequest(mode="console", width=20, back="blue", per_dataset=2)
    preview([scan(dataset(tmp_path), SHAPE)], request, events.append)
    lines = [event.text for event in events if isinstance(event, Note)]
    assert [line for line in lines if "caption" in line] == [
        "0_0064x0048_vm: caption 0",
        "1_0064x0048_vm: caption 1",
    ]
    art = [line for line in lines if line.startswith("\x1b[44m")]
    assert art and all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) == 20 for line in art)


def test_dark_and_bright_have_different_letters():
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 8:] = 255
    (line, *_) = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in console_lines(picture, 16))
    assert line == " " * 8 + "@" * 8
    with pytest.raises(ConfigError, match="choose one of black"):
        console_lines(picture, 16, back="bleu")


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    broken = write_picture(tmp_path / "b.png")
    found = scan(dataset(tmp_path), SHAPE)
    broken.write_bytes(b"")
    events: list = []
    failures = preview([found], PreviewRequest(mode="video"), events.append)
    assert len(failures) == 1 and "b.png" in failures[0]
    assert [event.text for event in events if isinstance(event, Warned)] == failures
    assert len([event for event in events if isinstance(event, FileWritten)]) == 1


def test_a_preview_stops_when_asked(tmp_path: Path):
    for number in range(5):
        write_picture(tmp_path / f"{number}.png")
    events: list = []
    preview(
        [scan(dataset(tmp_path), SHAPE)], PreviewRequest(mode="video"), events.append, lambda: len(events) > 0
    )
    assert len([event for event in events if isinstance(event, FileWritten)]) == 1


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match="image, console, video"):
        preview([], PreviewRequest(mode="window"), lambda event: None)
