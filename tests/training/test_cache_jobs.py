"""Nothing is encoded twice, nothing stale is kept, and one bad file ends nothing."""

from __future__ import annotations

import gc
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_stage import Encoders, Stage, use
from PIL import Image
from safetensors.torch import load_file, save_file

from musubi_core.data import cache_writes, media_hashes
from musubi_core.data.ahead import ReadAhead
from musubi_core.data.cache_writes import WriteBehind
from musubi_core.data.dataset import read_datasets
from musubi_core.data.pixels import LoadedSample
from musubi_core.data.training_set import open_training_set
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Progress, Warned
from musubi_core.models.hunyuan_video.spec import SPEC


@pytest.fixture
def encoders(monkeypatch) -> Encoders:
    encoders = Encoders()
    use(encoders, monkeypatch)
    return encoders


@pytest.fixture
def stage(tmp_path, encoders) -> Stage:
    stage = Stage(tmp_path, encoders)
    for number, name in enumerate(("a.png", "b.jpg", "c.png")):
        stage.picture(name, f"caption {number}", grey=50 + 50 * number)
    return stage


def opened(stage: Stage):
    events = []
    found = open_training_set(
        read_datasets(stage.toml), SPEC.latent, SPEC.required_tensors, emit=events.append
    )
    return found, [event.text for event in events if isinstance(event, Warned)]


# Reuse


def test_an_unchanged_dataset_opens_no_encoder_and_touches_no_file(stage, encoders):
    assert stage.latents().written == stage.text().written == 3
    before = {path: path.stat().st_mtime_ns for path in stage.cache.glob("*.safetensors")}
    encoders.opened.clear()
    assert (stage.latents().reused, stage.text().reused) == (3, 3)
    assert encoders.opened == [] and len(encoders.groups) == 3
    assert {path: path.stat().st_mtime_ns for path in stage.cache.glob("*.safetensors")} == before


def test_an_unchanged_folder_is_not_read_again(stage, monkeypatch):
    stage.latents()
    monkeypatch.setattr(media_hashes, "content_hash", lambda path: pytest.fail(f"{path} was read"))
    assert stage.latents().reused == 3


def test_a_file_with_a_new_date_and_the_same_content_is_not_encoded_again(stage, encoders):
    stage.latents()
    for path in stage.media.glob("*.*g"):
        os.utime(path, (1, 1))
    assert stage.latents().reused == 3 and len(encoders.groups) == 3


def test_a_changed_picture_is_encoded_again_and_no_other(stage):
    stage.latents()
    before = stage.files()
    stage.picture("b.jpg", "caption 1", grey=200)
    report = stage.latents()
    assert (report.written, report.reused) == (1, 2)
    changed = {name for name, data in stage.files().items() if data != before[name]}
    assert changed == {"b_0064x0032_hv.safetensors"}


def test_a_changed_caption_is_encoded_again_and_no_other(stage, encoders):
    stage.latents()
    stage.text()
    encoders.captions.clear()
    stage.picture("b.jpg", "another caption", grey=100)
    assert (stage.latents().written, stage.text().written) == (0, 1)
    assert encoders.captions == [("llm", "another caption"), ("clipL", "another caption")]
    header = json.loads(_header(stage.cache / "b_hv_te.safetensors"))
    assert header["__metadata__"]["caption1"] == "another caption"


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: setattr(stage.encoders, "identity", "weights 2"),
        lambda stage: stage.encoders.settings.update(posterior="mode"),
        lambda stage: stage.keys.update(resolution=[32, 32]),
    ],
    ids=["weights", "setting", "resolution"],
)
def test_a_change_that_touches_all_latents_makes_all_anew(stage, change):
    stage.latents()
    change(stage)
    assert stage.latents().written == 3
    assert stage.latents().reused == 3


def test_another_text_encoder_makes_its_own_part_anew(stage, encoders):
    stage.text()
    before = load_file(stage.cache / "a_hv_te.safetensors")
    encoders.text_identity["llm"] = "l2"
    encoders.opened.clear()
    stage.text()
    assert encoders.opened == ["llm"]
    after = load_file(stage.cache / "a_hv_te.safetensors")
    assert after.keys() == before.keys() and torch.equal(after["clipL_float16"], before["clipL_float16"])


def test_equal_captions_are_encoded_once(stage, encoders):
    for name in ("a.png", "b.jpg", "c.png"):
        stage.picture(name, "the same")
    assert stage.text(batch_size=8).written == 3
    assert encoders.captions == [("llm", "the same"), ("clipL", "the same")]


def test_a_moved_folder_keeps_its_caches(stage):
    stage.latents()
    stage.latents()
    stage.text()
    moved = stage.root / "it's moved, 移動"
    stage.media.rename(moved)
    stage.keys["image_directory"] = str(moved)
    assert (stage.latents().reused, stage.text().reused) == (3, 3)
    assert {item.source for item in opened(stage)[0].items} == {
        str(moved / name) for name in ("a.png", "b.jpg", "c.png")
    }


# Order and groups


def test_samples_depend_neither_on_batch_size_nor_on_order_nor_on_what_is_fresh(tmp_path, monkeypatch):
    results = []
    for number, (options, first) in enumerate(
        [({"batch_size": 1}, ()), ({"batch_size": 3, "num_workers": 3}, ()), ({"batch_size": 2}, ("c.png",))]
    ):
        encoders = Encoders()
        use(encoders, monkeypatch)
        (tmp_path / str(number)).mkdir()
        stage = Stage(tmp_path / str(number), encoders)
        for name in first:
            stage.picture(name, grey=150)
            stage.latents()
        for name, grey in (("a.png", 50), ("b.png", 100), ("c.png", 150)):
            stage.picture(name, grey=grey)
        stage.latents(**options)
        results.append(stage.files())
    assert results[0] == results[1] == results[2]


def test_pictures_of_one_size_are_encoded_together(stage, encoders):
    stage.keys |= {"enable_bucket": True}
    stage.picture("tall.png", size=(32, 64))
    stage.latents(batch_size=8)
    assert sorted(encoders.groups) == [1, 3]


def test_the_batch_size_of_the_dataset_is_the_default(stage, encoders):
    stage.keys |= {"batch_size": 2}
    stage.latents()
    assert encoders.groups == [2, 1]


# musubi-tuner's files


def foreign_latent(stage: Stage, stem: str, *, height: int = 4, architecture: str = "hunyuan_video") -> None:
    stage.cache.mkdir(exist_ok=True)
    save_file(
        {f"latents_1x{height}x8_float16": torch.zeros(16, 1, height, 8).half()},
        stage.cache / f"{stem}_0064x0032_hv.safetensors",
        {"architecture": architecture, "width": "64", "height": "32", "format_version": "1.0.1"},
    )


def foreign_text(stage: Stage, stem: str, caption: str) -> None:
    stage.cache.mkdir(exist_ok=True)
    names = {"llm_float16", "llm_mask", "clipL_float16", "clipL_mask"}
    save_file(
        {name: torch.zeros(4).half() for name in names},
        stage.cache / f"{stem}_hv_te.safetensors",
        {"architecture": "hunyuan_video", "caption1": caption, "format_version": "1.0.1"},
    )


def test_files_of_musubi_tuner_that_fit_are_used_with_one_warning(stage, encoders):
    for number, stem in enumerate("abc"):
        foreign_latent(stage, stem)
        foreign_text(stage, stem, f"caption {number}")
    before = stage.files()
    assert stage.latents().accepted == 3
    assert (
        len(stage.warnings()) == 1 and "3 latents caches were made by another program" in stage.warnings()[0]
    )
    assert stage.text().accepted == 3 and len(stage.warnings()) == 1
    assert stage.latents(skip_existing=True).accepted == 3 and stage.warnings() == []
    assert stage.files() == before and encoders.opened == []
    found, warnings = opened(stage)
    assert len(found) == 3 and warnings == []


@pytest.mark.parametrize("skip_existing", [False, True])
def test_files_of_musubi_tuner_that_do_not_fit_are_made_anew(stage, skip_existing):
    foreign_latent(stage, "a", height=6)
    foreign_text(stage, "a", "an older caption")
    assert stage.latents(skip_existing=skip_existing).written == 3
    assert stage.text(skip_existing=skip_existing).written == 3


def test_a_part_that_is_added_to_a_foreign_text_file_keeps_the_rest(stage):
    foreign_text(stage, "a", "caption 0")
    path = stage.cache / "a_hv_te.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name.startswith("llm")}
    metadata = {"architecture": "hunyuan_video", "caption1": "caption 0", "format_version": "1.0.1"}
    save_file(tensors, path, metadata)
    stage.text()
    after = load_file(path)
    assert set(after) == {"llm_float16", "llm_mask", "clipL_float16", "clipL_mask"}
    assert not after["llm_float16"].any()


def test_parts_of_another_caption_are_not_kept(stage, encoders):
    foreign_text(stage, "a", "an older caption")
    stage.text(should_stop=lambda: "clipL" in encoders.opened or len(encoders.captions) >= 3)
    assert set(load_file(stage.cache / "a_hv_te.safetensors")) == {"llm_float16", "llm_mask"}
    assert stage.text().written == 3


def test_a_file_of_another_architecture_is_named_and_never_overwritten(stage):
    foreign_latent(stage, "a", architecture="wan")
    before = stage.files()["a_0064x0032_hv.safetensors"]
    report = stage.latents()
    assert report.written == 2 and len(report.failed) == 1
    assert "is a cache for wan" in report.failed[0].reason
    assert stage.files()["a_0064x0032_hv.safetensors"] == before


def test_a_cut_off_cache_file_is_made_anew(stage):
    stage.latents()
    path = stage.cache / "a_0064x0032_hv.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert stage.latents().written == 1
    assert path.read_bytes() == whole


# What is deleted


def remove(stage: Stage, stem: str) -> None:
    for path in stage.media.glob(f"{stem}.*"):
        path.unlink()


def test_caches_of_removed_media_are_deleted_and_nothing_else(stage):
    stage.latents()
    stage.text()
    save_file({"lora_down": torch.zeros(1)}, stage.cache / "style_hv.safetensors")
    foreign_latent(stage, "someone elses")
    remove(stage, "b")
    deleted = {path.name for path in (*stage.latents().deleted, *stage.text().deleted)}
    assert deleted == {"b_0064x0032_hv.safetensors", "b_hv_te.safetensors"}
    assert {"style_hv.safetensors", "someone elses_0064x0032_hv.safetensors"} <= set(stage.files())
    assert len(stage.files()) == 6


def test_keep_cache_deletes_nothing_and_does_not_train_on_it(stage):
    stage.latents()
    stage.text()
    remove(stage, "b")
    assert stage.latents(keep_cache=True).deleted == () == stage.text(keep_cache=True).deleted
    assert "b_0064x0032_hv.safetensors" in stage.files()
    assert {item.stem for item in opened(stage)[0].items} == {"a", "c"}
    assert [path.name for path in stage.latents().deleted] == ["b_0064x0032_hv.safetensors"]


def test_an_accepted_file_of_musubi_tuner_is_never_deleted(stage):
    foreign_latent(stage, "a")
    stage.latents()
    remove(stage, "a")
    assert stage.latents().deleted == ()
    assert "a_0064x0032_hv.safetensors" in stage.files()


def test_a_manifest_that_names_files_elsewhere_deletes_nothing_there(stage):
    stage.latents()
    outside = stage.root / "outside_hv.safetensors"
    outside.write_bytes(stage.files()["a_0064x0032_hv.safetensors"])
    path = stage.cache / "musubi_latents_hv.json"
    data = json.loads(path.read_text())
    data["files"]["../outside_hv.safetensors"] = data["files"]["a_0064x0032_hv.safetensors"]
    path.write_text(json.dumps(data))
    assert stage.latents().deleted == () and outside.exists()


# What goes wrong


def damaged(stage: Stage, name: str, how: str = "inside") -> Path:
    """A picture that ends too early, or one that looks whole until its pixels are decoded."""
    path = stage.picture(name)
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:2000] if how == "cut off" else data[:1000] + bytes(500) + data[1500:])
    return path


@pytest.mark.parametrize("how", ["cut off", "inside"])
def test_a_damaged_picture_is_named_and_the_rest_is_cached(stage, how):
    path = damaged(stage, "bad.png", how)
    stage.text()
    report = stage.latents()
    assert report.written == 3
    assert [failure.source for failure in report.failed] == [path]
    assert "bad.png" in stage.warnings()[-1]
    found, warnings = opened(stage)
    assert len(found) == 3
    assert how == "cut off" or "bad.png" in warnings[0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_nan_from_the_encoder_fails_that_item_alone_and_is_not_written(stage, encoders, batch_size):
    encoders.nan_below = 60  # a.png
    report = stage.latents(batch_size=batch_size)
    assert report.written == 2 and report.failed[0].source.name == "a.png"
    assert "NaN or infinity in latents" in report.failed[0].reason
    assert "a_0064x0032_hv.safetensors" not in stage.files()


def test_nan_from_a_text_encoder_is_named(stage):
    stage.picture("b.jpg", "a nan caption")
    report = stage.text(batch_size=2)
    assert [failure.source.name for failure in report.failed] == ["b.jpg"]
    assert "text encoder" in report.failed[0].reason and len(stage.files()) == 2


def test_a_group_that_does_not_fit_in_memory_is_tried_one_by_one(stage, encoders):
    once = encoders.encode

    def encode(pixels):
        if len(pixels.frames) > 1 or pixels.frames.float().mean() > 140:
            raise torch.OutOfMemoryError("too large")
        return once(pixels)

    encoders.encode = encode
    report = stage.latents(batch_size=3)
    assert report.written == 2
    assert report.failed[0].source.name == "c.png" and "out of memory" in report.failed[0].reason


def test_a_stale_cache_of_a_picture_that_can_no_longer_be_read_is_not_trained_on(stage):
    stage.text()
    stage.latents()
    damaged(stage, "a.png")
    assert len(stage.latents().failed) == 1
    assert {item.stem for item in opened(stage)[0].items} == {"b", "c"}


def test_a_stop_keeps_what_is_done_and_the_next_run_makes_the_rest(stage, encoders):
    report = stage.latents(should_stop=lambda: len(encoders.groups) >= 1)
    assert report.stopped and report.written == 1
    with pytest.raises(ConfigError, match="interrupted"):
        opened(stage)
    again = stage.latents()
    assert (again.written, again.reused, again.stopped) == (2, 1, False)


def test_a_crash_keeps_what_is_done_and_lists_it(stage, encoders):
    once = encoders.encode

    def encode(pixels):
        if encoders.groups:
            raise KeyboardInterrupt
        return once(pixels)

    encoders.encode = encode
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        stage.latents()
    assert threading.active_count() == before
    assert len(stage.files()) == 1
    encoders.encode = once
    remove(stage, "c")
    report = stage.latents()
    assert (report.written, report.reused) == (1, 1)


def test_a_full_disk_ends_the_job_with_its_reason(stage, monkeypatch):
    def full(*_):
        raise BadFileError("a_0064x0032_hv.safetensors was not written: the disk is full.")

    monkeypatch.setattr(cache_writes, "write_cache", full)
    before = threading.active_count()
    with pytest.raises(BadFileError, match="disk is full"):
        stage.latents()
    assert threading.active_count() == before


def test_a_cache_folder_that_cannot_be_made_is_an_error_before_anything_is_loaded(stage, encoders):
    stage.cache.write_text("a file where the folder should be")
    with pytest.raises(BadFileError, match="cache"):
        stage.latents()
    assert encoders.opened == []


def test_no_usable_item_is_an_error_before_anything_is_loaded(stage, encoders):
    for path in stage.media.glob("*.txt"):
        path.unlink()
    for job in (stage.latents, stage.text):
        with pytest.raises(ConfigError, match="0 usable items of 3"):
            job()
    assert encoders.opened == []


def test_a_missing_vae_is_named(stage):
    with pytest.raises(ConfigError, match="--vae is missing"):
        stage.latents(vae=None)


def test_several_architectures_need_a_choice(stage, monkeypatch):
    from musubi_core.training import cache_jobs

    monkeypatch.setattr(cache_jobs, "architectures", lambda: (SPEC, SPEC))
    with pytest.raises(ConfigError, match="--architecture is missing"):
        stage.latents()


# What is told, and what is left


def test_progress_counts_every_sample_and_names_files(stage):
    stage.latents()
    steps = [event for event in stage.events if isinstance(event, Progress) and event.stage == "latents"]
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    written = [event.path for event in stage.events if isinstance(event, FileWritten)]
    assert {path.name for path in written} == set(stage.files())


def test_threads_are_gone_after_each_job(stage):
    before = threading.active_count()
    for _ in range(3):
        stage.picture("a.png", grey=10)
        stage.latents(num_workers=4, batch_size=2)
        stage.text()
    assert threading.active_count() == before


def test_decoded_media_and_encoders_are_let_go(stage, encoders):
    stage.latents(num_workers=2, batch_size=2)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) in (LoadedSample, ReadAhead, WriteBehind)]


def test_debug_mode_shows_and_caches_nothing(stage, encoders):
    stage.latents(vae=None, debug_mode="console", console_num_images=1)
    assert encoders.opened == [] and not list(stage.root.rglob("*.safetensors"))


def _header(path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]
