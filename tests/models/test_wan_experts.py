"""Options, one or two networks, and what depends on the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from wan_networks import make_network

from musubi_core.config import build
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.tensors import write_tensors
from musubi_core.models.wan.experts import experts, settle
from musubi_core.models.wan.options import LatentOptions, TextOptions, TrainOptions
from musubi_core.models.wan.released import RELEASED
from musubi_core.models.wan.spec import SPEC
from musubi_core.models.wan.tasks import TASKS


def written(path: Path, task: str = "t2v-14B", **sizes: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, make_network(task, heads=1, layers=1, **sizes).state_dict())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return written(tmp_path / "low.safetensors"), written(tmp_path / "high.safetensors")


def options(**values: Any) -> TrainOptions:
    return build(TrainOptions, values, where="the command line")


def test_one_network_is_for_every_noise_level(pair):
    low, _ = pair
    settled = settle(low, options())
    (only,) = experts(low, settled)
    assert settled.task == "t2v-14B"
    assert (only.path, only.name, only.t_min, only.t_max) == (low, "", 0.0, 1.0)
    assert (only.lora, only.offload, only.cfg_scale) == ("", False, None)


def test_two_networks_share_the_noise_levels_at_the_boundary_of_their_task(pair):
    low, high = pair
    settled = settle(low, options(dit_high_noise=high))
    assert settled.task == "t2v-A14B"
    first, second = experts(low, settled)
    assert (first.name, first.path, first.t_min, first.t_max) == ("low_noise", low, 0.0, 0.875)
    assert (second.name, second.path, second.t_min, second.t_max) == ("high_noise", high, 0.875, 1.0)
    assert first.lora == second.lora == ""
    assert not first.offload
    assert (first.cfg_scale, second.cfg_scale) == (None, 4.0)
    assert SPEC.sampling_with(settled).cfg_scale == 3.0


def test_image_to_video_has_its_own_boundary(tmp_path: Path):
    low, high = (written(tmp_path / f"{name}.safetensors", "i2v-A14B") for name in ("low", "high"))
    settled = settle(low, options(dit_high_noise=high))
    assert settled.task == "i2v-A14B"
    assert experts(low, settled)[0].t_max == 0.9


@pytest.mark.parametrize(("given", "meant"), [(0.9, 0.9), (900, 0.9), (875.5, 0.8755), ("0.5", None)])
def test_the_boundary_may_be_a_fraction_or_thousandths(pair, given: Any, meant: float | None):
    low, high = pair
    if meant is None:
        with pytest.raises(ConfigError, match=r"timestep_boundary.*expected a number"):
            options(dit_high_noise=high, timestep_boundary=given)
        return
    settled = settle(low, options(dit_high_noise=high, timestep_boundary=given))
    assert experts(low, settled)[1].t_min == pytest.approx(meant)


def test_a_pair_of_loras_and_waiting_in_host_memory_are_told_per_network(pair):
    low, high = pair
    chosen = options(dit_high_noise=high, expert_loras="pair", offload_inactive_dit=True)
    found = experts(low, settle(low, chosen))
    assert [expert.lora for expert in found] == ["low_noise", "high_noise"]
    assert all(expert.offload for expert in found)


def test_two_networks_of_ones_own_need_a_boundary(tmp_path: Path):
    low, high = (written(tmp_path / f"{name}.safetensors", "i2v-14B") for name in ("low", "high"))
    with pytest.raises(ConfigError, match=r"--task i2v-14B, which has one network.*--timestep_boundary"):
        settle(low, options(dit_high_noise=high))
    settled = settle(low, options(dit_high_noise=high, timestep_boundary=0.5))
    assert [expert.t_max for expert in experts(low, settled)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"timestep_boundary": 0.9}, "--timestep_boundary is for two networks.*Set --dit_high_noise"),
        ({"offload_inactive_dit": True}, "--offload_inactive_dit is for two networks"),
        ({"expert_loras": "pair"}, "--expert_loras is for two networks"),
        ({"task": "t2v-14B", "image_to_video": True}, "only ti2v-5B can be trained both ways"),
        ({"task": "t2v-14B", "dit_high_noise": Path("high")}, r"Set --task t2v-A14B or i2v-A14B"),
        ({"dit_high_noise": Path("high"), "timestep_boundary": 0.0}, "leaves nothing for one"),
        ({"dit_high_noise": Path("high"), "timestep_boundary": 1000.0}, "leaves nothing for one"),
    ],
)
def test_options_that_contradict_each_other_are_refused(values: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        options(**values).check()


def test_a_first_frame_for_another_model_than_5b_is_refused_once_the_file_tells(pair):
    with pytest.raises(ConfigError, match="--task t2v-14B; only ti2v-5B"):
        settle(pair[0], options(image_to_video=True))


def test_the_same_file_twice_is_no_pair(pair):
    low, _ = pair
    with pytest.raises(ConfigError, match=r"the same file.*for low noise as --dit"):
        settle(low, options(dit_high_noise=low.parent / "." / low.name))


def test_two_networks_of_different_sizes_are_no_pair(pair, tmp_path: Path):
    other = written(tmp_path / "other.safetensors", "i2v-A14B")
    with pytest.raises(ConfigError, match="in_channels is 16 in one and 36 in the other"):
        settle(pair[0], options(dit_high_noise=other))


def test_a_second_network_that_is_none_is_refused(pair, tmp_path: Path):
    write_tensors(tmp_path / "vae.safetensors", {"encoder.conv1.weight": make_network().head.modulation})
    with pytest.raises(BadFileError, match=r"vae.safetensors is not a Wan network: it holds a VAE"):
        settle(pair[0], options(dit_high_noise=tmp_path / "vae.safetensors"))


def test_a_task_that_the_file_contradicts_is_refused(pair):
    with pytest.raises(ConfigError, match="is no network for --task i2v-A14B"):
        settle(pair[0], options(task="i2v-A14B"))


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"choose one of t2v-1.3B, t2v-14B, t2i-14B"):
        options(task="t2v-15B")


# What depends on the task


@pytest.mark.parametrize("task", [None, *(task for task in TASKS if task != "ti2v-5B")])
def test_all_models_but_5b_share_their_latents(task: str | None):
    for job in (LatentOptions, TextOptions, TrainOptions):
        shape = SPEC.latent_with(job(task=task))
        numbers = (shape.channels, shape.spatial, shape.temporal, shape.pixel_step, shape.fps)
        assert numbers == (16, 8, 4, 16, 16.0)
        assert (shape.architecture, shape.short) == ("wan", "wan")


def test_the_5b_model_has_latents_of_its_own():
    for job in (LatentOptions, TextOptions, TrainOptions):
        shape = SPEC.latent_with(job(task="ti2v-5B"))
        numbers = (shape.channels, shape.spatial, shape.temporal, shape.pixel_step, shape.fps)
        assert numbers == (48, 16, 4, 32, 24.0)


@pytest.mark.parametrize(
    ("values", "controls"),
    [
        ({}, (0, 1)),
        ({"task": "t2v-14B"}, (0, 0)),
        ({"task": "t2v-14B-FC"}, (1, 1)),
        ({"one_frame": True}, (1, 2)),
    ],
)
def test_how_many_controls_an_item_has_follows_from_what_is_cached(
    values: dict[str, Any], controls: tuple[int, int]
):
    shape = SPEC.latent_with(LatentOptions(**values))
    assert (shape.min_controls, shape.max_controls) == controls


@pytest.mark.parametrize(
    ("task", "steps", "shift", "scale", "fps"),
    [
        (None, 50, 5.0, 5.0, 16.0),
        ("t2v-1.3B", 50, 5.0, 5.0, 16.0),
        ("i2v-14B", 40, 5.0, 5.0, 16.0),
        ("t2v-A14B", 40, 12.0, 3.0, 16.0),
        ("i2v-A14B", 40, 5.0, 3.5, 16.0),
        ("ti2v-5B", 50, 5.0, 5.0, 24.0),
    ],
)
def test_sampling_defaults_are_the_official_ones(
    task: str | None, steps: int, shift: float, scale: float, fps: float
):
    usual = SPEC.sampling_with(TrainOptions(task=task))
    assert (usual.steps, usual.shift, usual.cfg_scale, usual.fps) == (steps, shift, scale, fps)
    assert usual.guidance == 1.0


def test_small_image_to_video_clips_are_sampled_with_less_shift():
    usual = SPEC.sampling_with(TrainOptions(task="i2v-14B"))
    assert usual.shift_at(480 // 8, 832 // 8) == usual.shift_at(832 // 8, 480 // 8) == 3.0
    assert usual.shift_at(720 // 8, 1280 // 8) == 5.0
    assert SPEC.sampling_with(TrainOptions(task="t2v-14B")).shift_at(60, 104) == 5.0


def test_every_task_is_described_once():
    assert set(TASKS) == set(RELEASED)
