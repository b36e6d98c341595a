from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from musubi_core.data.dataset import read_datasets
from musubi_core.data.scan import scan
from musubi_core.demo.config import DemoConfig
from musubi_core.demo.folder import fresh_folder
from musubi_core.demo.media import CLIPS, PHOTOGRAPHS, grey, pan, photograph, write_clip, write_media
from musubi_core.demo.run import demo
from musubi_core.errors import ConfigError, MissingLibraryError
from musubi_core.events import FileWritten, Metrics, Note
from musubi_core.models.registry import SPECS, architecture


@pytest.fixture(scope="module", params=list(SPECS))
def finished(request, tmp_path_factory):
    """One whole demo of each architecture, with everything it told."""
    events = []
    folder = tmp_path_factory.mktemp("demo") / "run with spaces, ünïcode"
    config = DemoConfig(output_dir=folder, architecture=request.param, max_train_steps=24)
    return folder, demo(config, events.append), events


def test_the_demo_ends_with_a_lora_that_loads_and_is_not_zero(finished):
    from safetensors.torch import load_file

    tensors = load_file(finished[1].lora)
    ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
    assert ups and all(float(up.abs().max()) > 0 for up in ups)


def test_the_demo_kills_its_run_and_the_steps_still_count_from_1_to_the_end(finished):
    folder, _, events = finished
    assert any("Killed the run at step" in event.text for event in events if isinstance(event, Note))
    rows = [json.loads(line) for line in (folder / "output" / "demo.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert max(event.step for event in events if isinstance(event, Metrics)) == 24


def test_every_file_that_the_demo_lists_exists_and_its_purpose_is_said(finished):
    _, result, events = finished
    assert all(path.exists() and purpose for path, purpose in result.files)
    last = [event.text for event in events if isinstance(event, Note)][-1]
    assert "demo.safetensors" in last and "samples.png" in last
    assert ("media/controls" in last) == (finished[0] / "media" / "controls").exists()
    assert {event.path for event in events if isinstance(event, FileWritten)} >= {
        result.grid,
        result.loss_plot,
    }


def test_the_demo_says_that_its_weights_are_random(finished):
    first = next(event.text for event in finished[2] if isinstance(event, Note))
    assert "tiny and random" in first


def test_base_and_lora_pictures_differ(finished):
    from PIL import Image

    sheet = np.asarray(Image.open(finished[1].grid).convert("RGB")).astype(int)
    left, right = sheet[60:200, 20:180], sheet[60:200, 220:380]
    assert np.abs(left - right).mean() > 1


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by the demo"):
        fresh_folder(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_demo_is_cleared_away(tmp_path):
    folder = fresh_folder(tmp_path / "demo")
    (folder / "old.txt").write_text("old")
    assert not (fresh_folder(folder) / "old.txt").exists()


def test_without_the_photographs_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingLibraryError, match=r"pip install \"comfyui-musubi\[demo\]\""):
        photograph("chelsea")


def test_a_clip_is_the_photograph_in_motion(tmp_path):
    import av

    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 64:] = 255
    write_clip(tmp_path / "clip.mp4", pan(picture, frames=9))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    assert frames[0].mean() < 40 < 200 < frames[-1].mean()


@pytest.mark.parametrize("name", SPECS)
def test_the_dataset_file_of_the_demo_is_read_by_our_own_reader(tmp_path, name):
    shape = architecture(name).latent
    media = write_media(tmp_path / "it's a folder", shape)
    datasets = read_datasets(media.dataset)
    assert [dataset.is_video for dataset in datasets] == ([False, True] if shape.temporal else [False])
    scans = [scan(dataset, shape) for dataset in datasets]
    assert sum(len(one.items) for one in scans) == len(PHOTOGRAPHS) + (len(CLIPS) if shape.temporal else 0)
    assert not [skipped for one in scans for skipped in one.skipped]
    assert {len(item.controls) for item in scans[0].items} == {shape.min_controls}
    assert [item.caption for item in scans[0].items] == [media.captions[item.stem] for item in scans[0].items]


def test_before_the_edit_a_photograph_is_grey():
    picture = photograph("chelsea")
    before = grey(picture)
    assert before.shape == picture.shape and before.dtype == picture.dtype
    assert (before == before[..., :1]).all()
    assert np.abs(before[..., 0] - picture.mean(axis=2)).max() <= 0.5
