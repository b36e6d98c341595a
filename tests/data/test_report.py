"""The report names every file and adds up."""

from __future__ import annotations

import json
from pathlib import Path

from made_media import SHAPE, dataset, write_picture, write_video

from musubi_core.data.report import bucket_table, report_of, report_text
from musubi_core.data.scan import scan


def test_the_report_names_every_file_its_bucket_and_the_reasons(tmp_path: Path):
    write_picture(tmp_path / "p" / "wide.png", (96, 48), caption="12345")
    write_picture(tmp_path / "p" / "square.png", (64, 64), caption="")
    write_picture(tmp_path / "p" / "silent.png", caption=None)
    write_video(tmp_path / "v" / "clip.mkv", 30, fps=48)
    pictures = scan(dataset(tmp_path / "p", num_repeats=5, batch_size=2), SHAPE)
    videos = scan(dataset(tmp_path / "v", target_frames=[1, 5], frame_extraction="chunk"), SHAPE)
    text = report_text([pictures, videos])
    for expected in (
        "2 of 3 files used, 2 samples, num_repeats 5, batch_size 2",
        "captions: 0 to 5 characters, median 2, 1 empty",
        "wide.png: 96x48 -> ",
        "silent.png: no caption: expected silent.txt beside it.",
        "clip.mkv: 64x48 -> ",
        "15 frames (file: 48 fps), clips: 15 of 1, 3 of 5",
        "All datasets: 28 samples per epoch.",
    ):
        assert expected in text
    assert "wide.png" not in report_text([pictures], files=False)
    assert "silent.png" in report_text([pictures], files=False)


def test_the_bucket_table_counts_repeats_and_short_batches(tmp_path: Path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", (64, 64))
    write_picture(tmp_path / "wide.png", (96, 48))
    rows = bucket_table(scan(dataset(tmp_path), SHAPE).samples, num_repeats=3, batch_size=4)
    assert [(row.size, row.samples, row.per_epoch, row.batches) for row in rows] == [
        ((64, 64), 3, 9, 3),
        ((80, 48), 1, 3, 1),
    ]


def test_the_report_is_json_too(tmp_path: Path):
    write_video(tmp_path / "clip.mkv", 9)
    report = report_of(scan(dataset(tmp_path, target_frames=[5]), SHAPE))
    data = json.loads(json.dumps(report.to_json()))
    assert data["used"][0]["clips"] == {"5": 1} and data["captions"]["longest"] == 7


def test_a_dataset_without_items_is_reported_too(tmp_path: Path):
    write_picture(tmp_path / "a.png", caption=None)
    text = report_text([scan(dataset(tmp_path), SHAPE)])
    assert "0 of 1 files used" in text and "a.png: no caption" in text
