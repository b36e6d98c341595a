"""What a run trains on: from our manifest or from musubi-tuner's file names, always checked."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cache_fixtures import HV, REQUIRED, dataset, foreign_item, foreign_latent, foreign_text
from safetensors.torch import save_file

from musubi_core.data.cache_file import our_metadata, read_cache, write_cache
from musubi_core.data.manifest import (
    Entry,
    Manifest,
    dataset_settings,
    manifest_path,
    read_manifest,
    write_manifest,
)
from musubi_core.data.training_set import open_training_set, split_validation
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Warned


def opened(*datasets, required=REQUIRED, events=None):
    return open_training_set(datasets, HV, required, emit=(events if events is not None else []).append)


def own_item(config, stem: str, *, mark: str = "f1", **entry) -> tuple[str, Entry]:
    """A cached picture with our metadata, and its line in the manifest."""
    folder = config.cache_folder
    name = f"{stem}_0032x0032_hv.safetensors"
    foreign_item(folder, stem)
    header, tensors = read_cache(folder / name)
    write_cache(folder / name, tensors, {**header.metadata, **our_metadata("latents", mark, {})})
    values = {"bucket": (32, 32), "fingerprints": {"latents": mark}, **entry}
    return name, Entry(stem=stem, source=f"{stem}.png", **values)


def write_own(config, *entries, **values) -> None:
    manifest = Manifest(
        architecture=values.pop("architecture", "hunyuan_video"),
        dataset=dataset_settings(config),
        complete=values.pop("complete", True),
        entries=dict(entries),
    )
    write_manifest(config.cache_folder, "hv", "latents", manifest)


def test_items_come_from_the_manifest_and_stale_files_are_not_trained_on(tmp_path):
    config = dataset(tmp_path)
    write_own(config, own_item(config, "a"), own_item(config, "b"), own_item(config, "old", used=False))
    foreign_item(config.cache_folder, "left over")
    found = opened(config)
    assert [item.stem for item in found.items] == ["a", "b"]
    assert {name: shape for name, shape, _ in found.items[0].shapes}["latents"] == (16, 1, 4, 4)


def test_a_folder_of_musubi_tuner_is_accepted_with_one_warning(tmp_path):
    config, events = dataset(tmp_path), []
    for stem in ("a", "b_1"):
        foreign_item(config.cache_folder, stem)
    foreign_latent(config.cache_folder / "c_00013-005_0032x0048_hv.safetensors", grid=(2, 6, 4))
    foreign_text(config.cache_folder / "c_hv_te.safetensors")
    save_file({"lora_down": torch.zeros(1)}, config.cache_folder / "style_hv.safetensors")
    found = opened(config, events=events)
    assert [item.stem for item in found.items] == ["a", "b_1", "c"]
    assert len(events) == 1 and isinstance(events[0], Warned) and "another program" in events[0].text


def test_a_changed_setting_is_named_with_the_command_that_mends_it(tmp_path):
    config = dataset(tmp_path, resolution=(32, 32))
    write_own(config, own_item(config, "a"))
    changed = dataclasses.replace(config, resolution=(64, 32))
    with pytest.raises(ConfigError, match=r"resolution was \[32, 32\], is \[64, 32\].*musubi cache-latents"):
        opened(changed)
    opened(dataclasses.replace(config, batch_size=4, num_repeats=2))  # these change no cache


def test_unfinished_caching_is_refused(tmp_path):
    config = dataset(tmp_path)
    write_own(config, own_item(config, "a"), complete=False)
    with pytest.raises(ConfigError, match=r"interrupted.*musubi cache-latents"):
        opened(config)


def test_a_manifest_of_another_architecture_is_refused(tmp_path):
    config = dataset(tmp_path)
    write_own(config, own_item(config, "a"), architecture="wan")
    with pytest.raises(BadFileError, match=r"musubi_latents_hv\.json lists caches for wan"):
        opened(config)


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_a_cache_of_another_architecture_is_named(tmp_path, kind):
    config = dataset(tmp_path)
    foreign_item(config.cache_folder, "a", architecture="wan" if kind == "latents" else "hunyuan_video")
    if kind == "text":
        foreign_text(config.cache_folder / "a_hv_te.safetensors", architecture="wan")
    name = "a_hv_te" if kind == "text" else "a_0032x0032_hv"
    with pytest.raises(
        BadFileError, match=rf"{name}\.safetensors is a cache for wan; expected hunyuan_video"
    ):
        opened(config)


def test_a_folder_with_caches_of_another_architecture_only_says_so(tmp_path):
    config = dataset(tmp_path)
    foreign_latent(config.cache_folder / "a_0032x0032_wan.safetensors")
    with pytest.raises(ConfigError, match=r"no hunyuan_video caches.*another architecture \(ending in wan\)"):
        opened(config)


def test_a_file_that_is_not_the_planned_one_is_refused(tmp_path):
    config = dataset(tmp_path)
    name, entry = own_item(config, "a", mark="f1")
    write_own(config, (name, dataclasses.replace(entry, fingerprints={"latents": "f2"})))
    with pytest.raises(BadFileError, match=r"a_0032x0032_hv.*another fingerprint"):
        opened(config)


@pytest.mark.parametrize(("bucket", "frames"), [((32, 64), 1), ((32, 32), 5)])
def test_latents_of_another_size_than_planned_are_refused(tmp_path, bucket, frames):
    config = dataset(tmp_path)
    write_own(config, own_item(config, "a", bucket=bucket, frames=frames))
    with pytest.raises(BadFileError, match=r"shape \[16, 1, 4, 4\]; expected"):
        opened(config)


def test_a_missing_required_tensor_is_named_with_the_command(tmp_path):
    config = dataset(tmp_path)
    foreign_item(config.cache_folder, "a")
    path = config.cache_folder / "a_hv_te.safetensors"
    save_file({"llm_float16": torch.zeros(2)}, path, {"architecture": "hunyuan_video"})
    with pytest.raises(BadFileError, match=r"a_hv_te.* has no llm_mask.*musubi cache-text"):
        opened(config)


def test_a_damaged_cache_is_named(tmp_path):
    config = dataset(tmp_path)
    foreign_item(config.cache_folder, "a")
    path = config.cache_folder / "a_0032x0032_hv.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadFileError, match="a_0032x0032_hv"):
        opened(config)


def test_items_without_text_or_that_failed_are_named_and_left_out(tmp_path):
    config, events = dataset(tmp_path), []
    failed = Entry(stem="bad", source="bad.png", bucket=(32, 32), failed="the picture is cut off")
    write_own(config, own_item(config, "a"), own_item(config, "b"), ("bad_0032x0032_hv.safetensors", failed))
    (config.cache_folder / "b_hv_te.safetensors").unlink()
    assert [item.stem for item in opened(config, events=events).items] == ["a"]
    (warned,) = events
    assert "2 items are not trained on" in warned.text
    assert "b.png: no text cache" in warned.text and "bad.png: the picture is cut off" in warned.text


def test_no_usable_item_is_an_error(tmp_path):
    config = dataset(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no hunyuan_video caches.*musubi cache-latents and musubi cache-text"
    ):
        opened(config)
    foreign_latent(config.cache_folder / "a_0032x0032_hv.safetensors")
    with pytest.raises(ConfigError, match=r"0 usable items.*no text cache \(a_hv_te"):
        opened(config)


def test_a_damaged_manifest_says_what_to_do(tmp_path):
    config = dataset(tmp_path)
    path = manifest_path(config.cache_folder, "hv", "latents")
    for text in ("{", "[]", '{"format": 99}', '{"format": 1, "files": {"a": 3}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BadFileError, match=r"musubi_latents_hv\.json is damaged.*Delete this file"):
            read_manifest(config.cache_folder, "hv", "latents")


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    config = dataset(tmp_path)
    entry = Entry(stem="ä b", source="C:\\x\\ä b.mp4", is_video=True, bucket=(32, 48), start=3, frames=5)
    manifest = Manifest(
        architecture="hunyuan_video",
        dataset=dataset_settings(config),
        entries={"ä b_00003-005_0032x0048_hv.safetensors": entry},
        media={"x.png": {"size": 3, "mtime_ns": 2**60, "files": 1, "sha256": "00"}},
    )
    write_manifest(tmp_path, "hv", "latents", manifest)
    assert read_manifest(tmp_path, "hv", "latents") == manifest


def windows(tmp_path, clips: int, windows_each: int = 3):
    config = dataset(tmp_path)
    for clip in range(clips):
        foreign_text(config.cache_folder / f"clip{clip}_hv_te.safetensors")
        for start in range(windows_each):
            foreign_latent(config.cache_folder / f"clip{clip}_{start:05d}-001_0032x0032_hv.safetensors")
    return opened(config)


def test_whole_clips_are_held_out_and_adding_files_moves_none(tmp_path):
    before = windows(tmp_path, 20)
    train, held = split_validation(before, 0.3, seed=1)
    stems, held_stems = {item.stem for item in train.items}, {item.stem for item in held.items}
    assert stems and held_stems and not stems & held_stems
    assert len(train) + len(held) == 60
    after_train, after_held = split_validation(windows(tmp_path, 40), 0.3, seed=1)
    assert held_stems <= {item.stem for item in after_held.items}
    assert stems <= {item.stem for item in after_train.items}
    assert {i.stem for i in split_validation(before, 0.3, seed=2)[1].items} != held_stems


def test_a_split_leaves_something_on_both_sides(tmp_path):
    whole = windows(tmp_path, 3)
    for fraction in (1e-9, 1.0):
        train, held = split_validation(whole, fraction, seed=0)
        assert len(train) and len(held)
    assert len(split_validation(whole, 0.0, seed=0)[1]) == 0


def test_the_summary_counts_repeats_and_tells_no_folder_of_the_disk(tmp_path):
    config = dataset(tmp_path, num_repeats=3)
    foreign_item(config.cache_folder, "a")
    foreign_item(config.cache_folder, "b", grid=(1, 2, 4))
    (summary,) = opened(config).summary()
    assert summary["num_train_items"] == 6
    assert [(bucket["latent"], bucket["count"]) for bucket in summary["buckets"]] == [
        ([1, 2, 4], 3),
        ([1, 4, 4], 3),
    ]
    assert str(tmp_path) not in repr(summary)
