"""Datasets of every task become musubi-tuner's cache files, and those become batches; tiny weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.data.batches import load_batch
from musubi_core.data.dataset import read_datasets
from musubi_core.data.order import epoch_batches
from musubi_core.data.training_set import open_training_set
from musubi_core.demo.media import write_clip
from musubi_core.events import FileWritten
from musubi_core.models.spec import TinyFiles
from musubi_core.models.wan.options import LatentOptions, TextOptions
from musubi_core.models.wan.spec import SPEC
from musubi_core.models.wan.tiny import write_tiny_variant
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_jobs import cache_latents, cache_text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """task -> its tiny files, written once."""
    return cache(lambda task: write_tiny_variant(tmp_path_factory.mktemp("models"), 0, task=task))


class Stage:
    """Media with captions, a dataset file, and the two caching jobs."""

    def __init__(self, root: Path, files: TinyFiles) -> None:
        self.root, self.files = root, files
        self.cache = root / "cache"
        self.keys: dict[str, Any] = {"resolution": [64, 48], "cache_directory": str(self.cache)}

    def videos(self, folder: str = "clips", *, seed: int = 0, fps: int = 16, frames: int = 9) -> None:
        key = "video_directory" if folder == "clips" else "control_directory"
        (self.root / folder).mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)
        write_clip(self.root / folder / "walk.mp4", pixels, fps)
        if folder == "clips":
            (self.root / folder / "walk.txt").write_text("a cat walks", encoding="utf-8")
        self.keys |= {key: str(self.root / folder), "target_frames": [9]}

    def pictures(self, *, controls: int) -> None:
        from PIL import Image

        draw = np.random.default_rng(3)
        for folder, names in (("after", ["cat"]), ("before", [f"cat_{n}" for n in range(controls)])):
            (self.root / folder).mkdir()
            for name in names:
                pixels = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.root / folder / f"{name}.png")
        (self.root / "after" / "cat.txt").write_text("the cat jumps", encoding="utf-8")
        self.keys |= {
            "image_directory": str(self.root / "after"),
            "control_directory": str(self.root / "before"),
        }

    @property
    def toml(self) -> Path:
        path = self.root / "dataset.toml"
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in self.keys.items())
        path.write_text(f"[[datasets]]\n{text}\n", encoding="utf-8")
        return path

    def latents(self, **options: Any) -> list[Path]:
        """Run the job; the files that it wrote."""
        told: list[Any] = []
        config = CacheLatentsConfig(
            dataset_config=self.toml,
            architecture="wan",
            vae=self.files.vae,
            device="cpu",
            arch_options=LatentOptions(**options),
        )
        assert cache_latents(config, told.append).failed == ()
        written = [event.path for event in told if isinstance(event, FileWritten)]
        return [path for path in written if path.suffix == ".safetensors"]

    def text(self, **options: Any) -> None:
        options = {"t5": self.files.options["t5"], **options}
        config = CacheTextConfig(
            dataset_config=self.toml,
            architecture="wan",
            device="cpu",
            arch_options=TextOptions(**options),
        )
        assert cache_text(config).failed == ()

    def batch(self, **options: Any) -> dict[str, Any]:
        """The only batch, as training reads it."""
        shape = SPEC.latent_with(LatentOptions(**options))
        cached = open_training_set(read_datasets(self.toml), shape, SPEC.required_tensors)
        (plan,) = epoch_batches(cached, seed=0, epoch=0)
        return load_batch(plan)

    def held(self, name: str) -> tuple[dict[str, list[int]], dict[str, str]]:
        """key -> shape, and metadata, as the safetensors library itself reads them."""
        with safe_open(self.cache / name, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
            return shapes, file.metadata()


CLIP_FILE = "walk_00000-009_0064x0048_wan.safetensors"


def test_a_clip_for_image_to_video_has_musubi_tuners_names_and_keys(tmp_path, tiny):
    files = tiny("i2v-14B")
    stage = Stage(tmp_path, files)
    stage.videos()
    stage.latents(clip=files.options["clip"])
    stage.text()
    shapes, metadata = stage.held(CLIP_FILE)
    assert shapes == {
        "latents_3x6x8_bfloat16": [16, 3, 6, 8],
        "latents_image_3x6x8_bfloat16": [20, 3, 6, 8],
        "clip_float16": [257, 80],
    }
    assert (metadata["architecture"], metadata["frame_count"]) == ("wan", "9")
    text, metadata = stage.held("walk_wan_te.safetensors")
    ((key, size),) = text.items()
    assert key == "varlen_t5_bfloat16" and size[1] == 64 and 4 <= size[0] <= 20
    assert (metadata["architecture"], metadata["caption1"]) == ("wan", "a cat walks")
    batch = stage.batch()
    assert {name: value.shape[1:] for name, value in batch.items() if name != "t5"} == {
        "latents": (16, 3, 6, 8),
        "latents_image": (20, 3, 6, 8),
        "clip": (257, 80),
    }
    assert [item.shape[1] for item in batch["t5"]] == [64]


def test_first_and_last_frame_fun_control_and_5b(tmp_path, tiny):
    def shapes_of(name, task, options, *, control=False, fps=16):
        root = tmp_path / name
        root.mkdir()
        stage = Stage(root, tiny(task))
        if task == "ti2v-5B":
            stage.keys["resolution"] = [64, 64]
        stage.videos(fps=fps)
        if control:
            stage.videos("controls", seed=9, fps=fps)
        stage.latents(task=task, **options)
        stage.text(task=task)
        return {key: tuple(value.shape[1:]) for key, value in stage.batch(task=task).items() if key != "t5"}

    clip = tiny("flf2v-14B").options["clip"]
    latent, image = (16, 3, 6, 8), (20, 3, 6, 8)
    assert shapes_of("a", "flf2v-14B", {"clip": clip}) == {
        "latents": latent, "latents_image": image, "clip": (2, 257, 80)}  # fmt: skip
    assert shapes_of("b", "t2v-14B-FC", {}, control=True) == {"latents": latent, "latents_control": latent}
    assert shapes_of("c", "i2v-14B-FC", {"clip": clip}, control=True) == {
        "latents": latent, "latents_image": image, "latents_control": latent, "clip": (257, 80)}  # fmt: skip
    assert shapes_of("d", "ti2v-5B", {}, fps=24) == {"latents": (48, 3, 4, 4)}


def test_a_clip_for_5b_is_as_long_as_its_own_frame_rate_makes_it(tmp_path, tiny):
    stage = Stage(tmp_path, tiny("ti2v-5B"))
    stage.keys["resolution"] = [64, 64]
    stage.videos(fps=24)  # 9 frames at 24 per second, but 6 at 16
    (written,) = stage.latents(task="ti2v-5B")
    assert "-009_0064x0064_" in written.name


def test_one_frame_items_hold_controls_and_target_and_can_be_trained_on(tmp_path, tiny):
    files = tiny("flf2v-14B")
    stage = Stage(tmp_path, files)
    stage.pictures(controls=2)
    stage.keys |= {"fp_1f_clean_indices": [0, 2], "fp_1f_target_index": 1}
    options = {"task": "flf2v-14B", "one_frame": True, "clip": files.options["clip"]}
    (written,) = stage.latents(**options)
    stage.text()
    shapes, _ = stage.held(written.name)
    assert shapes == {
        "latents_3x6x8_bfloat16": [16, 3, 6, 8],
        "latents_image_3x6x8_bfloat16": [20, 3, 6, 8],
        "clip_float16": [2, 257, 80],
        "f_indices_int32": [3],
    }
    batch = stage.batch(**options)
    assert batch["f_indices"].tolist() == [[0, 1, 2]]
    assert stage.latents(**options) == [], "nothing is encoded twice"
    stage.keys["fp_1f_target_index"] = 3
    assert len(stage.latents(**options)) == 1, "another time is another latent"


def test_what_changes_no_tensor_encodes_nothing_again(tmp_path, tiny):
    stage = Stage(tmp_path, tiny("t2v-14B"))
    stage.videos()
    assert len(stage.latents()) == 1
    assert stage.latents(vae_cache_cpu=True) == []
    assert stage.latents(task="t2v-1.3B") == []
    assert len(stage.latents(i2v=True)) == 1


def test_a_cache_of_another_program_is_taken_only_if_it_holds_every_condition(tmp_path, tiny):
    stage = Stage(tmp_path, tiny("t2v-14B"))
    stage.videos()
    stage.latents()
    tensors = load_file(stage.cache / CLIP_FILE)
    for path in stage.cache.iterdir():
        path.unlink()
    foreign = {"architecture": "wan", "width": "64", "height": "48", "format_version": "1.0.1"}
    save_file(tensors, stage.cache / CLIP_FILE, {**foreign, "frame_count": "9"})
    assert stage.latents() == []
    assert [path.name for path in stage.latents(i2v=True)] == [CLIP_FILE]
