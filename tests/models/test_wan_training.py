"""From caches to a LoRA for members of the family that are shown more than text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from wan_networks import make_network

from musubi_core.config import build
from musubi_core.data.cache_file import write_cache
from musubi_core.errors import BadFileError
from musubi_core.files.tensors import TensorFile, write_tensors
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.spec import SPEC
from musubi_core.training.config import TrainConfig
from musubi_core.training.run import train

GRID = (3, 4, 6)
WORDS = {"architecture": "wan", "format_version": "1.0.1"}


def conditions(task: str, generator: torch.Generator) -> dict[str, Tensor]:
    """What stands beside the latents of an item, in musubi-tuner's shapes."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {}
    if task.startswith(("i2v", "flf2v")):
        found["latents_image"] = noise(20, *GRID).bfloat16()
    if task.endswith("-FC"):
        found["latents_control"] = noise(16, *GRID).bfloat16()
    if task == "flf2v-14B":
        found["clip"] = noise(2, 257, 1280).half()
    elif task in ("i2v-14B", "i2v-14B-FC"):
        found["clip"] = noise(257, 1280).half()
    return found


def workplace(folder: Path, task: str, *, cached_as: str = "") -> dict[str, Any]:
    """A network of `task`, and two clips cached for `cached_as` (the same task when not given)."""
    cache, media = folder / "cache", folder / "media"
    media.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    channels, cell = (48, 16) if task == "ti2v-5B" else (16, 8)
    width, height = GRID[2] * cell, GRID[1] * cell
    for number in range(2):
        tensors = {"latents": torch.randn(channels, *GRID, generator=generator).bfloat16()}
        tensors |= conditions(cached_as or task, generator)
        size = {"width": str(width), "height": str(height), "frame_count": "9"}
        name = f"clip{number}_00000-009_{width:04d}x{height:04d}_wan.safetensors"
        write_cache(cache / name, tensors, {**WORDS, **size})
        text = {"varlen_t5": torch.randn(4 + number, 32, generator=generator).bfloat16()}
        write_cache(cache / f"clip{number}_wan_te.safetensors", text, {**WORDS, "caption1": "a clip"})
    dataset = folder / "dataset.toml"
    dataset.write_text(
        f"[general]\nresolution = [{width}, {height}]\nbatch_size = 2\n[[datasets]]\ntarget_frames = [9]\n"
        f"video_directory = '{media.as_posix()}'\ncache_directory = '{cache.as_posix()}'\n",
        encoding="utf-8",
    )
    dit = folder / f"{task}.safetensors"
    write_tensors(dit, make_network(task, heads=1).state_dict())
    return {"dit": dit, "dataset_config": dataset, "output_dir": folder / "out", "output_name": "lora"}


def run(place: dict[str, Any], *, steps: int = 2, **options: Any) -> Path:
    values = {"max_train_steps": steps, "seed": 7, "network_dim": 2, "mixed_precision": "no", **place}
    config = build(TrainConfig, values, where="the test")
    return train(replace(config, arch_options=TrainOptions(**options)), spec=SPEC).lora


@pytest.mark.parametrize("task", ["i2v-14B", "flf2v-14B", "i2v-14B-FC", "i2v-A14B", "ti2v-5B"])
def test_every_member_is_trained_from_its_caches(tmp_path: Path, task: str):
    options = {"task": task} if task == "i2v-14B-FC" else {}  # the others are told by their files
    if task == "ti2v-5B":
        options["image_to_video"] = True
    lora = run(workplace(tmp_path, "t2v-14B-FC" if task == "i2v-14B-FC" else task, cached_as=task), **options)
    with TensorFile(lora) as file:
        assert file.metadata["ss_task"] == task
        assert file.metadata["ss_base_model_version"] == "wan"
        ups = [file.read(name) for name in file.names if name.endswith("lora_up.weight")]
    assert len(ups) == (24 if task in ("i2v-14B", "flf2v-14B", "i2v-14B-FC") else 20)
    assert all(up.abs().max() > 0 for up in ups)


@pytest.mark.parametrize(
    ("task", "cached_as", "words"),
    [
        ("i2v-14B", "t2v-14B", r"clip\d_00000-009_0048x0032_wan.safetensors has no latents_image"),
        ("i2v-14B", "i2v-A14B", "has no clip .*--task i2v-14B --clip FILE"),
        ("flf2v-14B", "i2v-14B", "knows the first frame only.*--task flf2v-14B --clip FILE"),
        ("i2v-A14B", "t2v-14B", "has no latents_image .*--task i2v-A14B"),
    ],
)
def test_caches_without_the_frames_that_a_member_needs_are_named(
    tmp_path: Path, task: str, cached_as: str, words: str
):
    with pytest.raises(BadFileError, match=words) as caught:
        run(workplace(tmp_path, task, cached_as=cached_as))
    assert str(caught.value).endswith("Run musubi cache-latents again.")


def test_caches_of_the_other_vae_are_refused(tmp_path: Path):
    place = workplace(tmp_path, "t2v-14B")
    with pytest.raises(BadFileError, match=r"latents of shape \[16, 3, 4, 6\]; expected 48 channels"):
        run({**place, "dit": workplace(tmp_path / "5b", "ti2v-5B")["dit"]})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A place to train 2.2's image to video, and its network for high noise."""
    place = workplace(tmp_path, "i2v-A14B")
    high = tmp_path / "high_noise.safetensors"
    write_tensors(high, make_network("i2v-A14B", seed=5, heads=1).state_dict())
    return {**place, "save_state": True}, high


def ups(path: Path) -> list[Tensor]:
    with TensorFile(path) as file:
        return [file.read(name) for name in file.names if name.endswith("lora_up.weight")]


def test_both_networks_of_2_2_train_one_lora_or_a_pair(pair):
    place, high = pair
    assert run({**place, "output_name": "one"}, steps=8, dit_high_noise=high).name == "one.safetensors"
    run({**place, "output_name": "two"}, steps=8, dit_high_noise=high, expert_loras="pair")
    files = [
        place["output_dir"] / f"{name}.safetensors" for name in ("one", "two-low_noise", "two-high_noise")
    ]
    assert all(tensor.abs().max() > 0 for path in files for tensor in ups(path))


def test_a_run_goes_on_with_the_idle_network_kept_elsewhere(pair):
    place, high = pair
    whole = run({**place, "output_name": "whole"}, steps=4, dit_high_noise=high)
    run(place, dit_high_noise=high)
    state = place["output_dir"] / "lora-state"
    offload = {"offload_inactive_dit": True, "force_v2_1_time_embedding": True}
    resumed = run({**place, "resume": str(state)}, steps=4, dit_high_noise=high, **offload)
    assert all(torch.equal(one, other) for one, other in zip(ups(whole), ups(resumed), strict=True))
