"""What the network is fed, in training and in sampling, for every member of the family."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wan_networks import make_network

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.models.wan.inputs import (
    padded_text,
    predict,
    sample_conditioning,
    training_input,
)
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.required import unfit

GRID = (3, 8, 12)
HALF = torch.tensor([0.5, 0.5])


def cached(task: str, *, without: tuple[str, ...] = (), captions: tuple[int, ...] = (5, 9)) -> dict[str, Any]:
    """A batch as the caches of a task hold it."""
    generator = torch.Generator().manual_seed(2)

    def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(len(captions), *shape, generator=generator).to(dtype)

    batch: dict[str, Any] = {
        "latents": noise(48 if task == "ti2v-5B" else 16, *GRID),
        "t5": [torch.randn(rows, 32, generator=generator).bfloat16() for rows in captions],
    }
    if task.startswith(("i2v", "flf2v")):
        batch["latents_image"] = noise(20, *GRID)
    if task.endswith("-FC"):
        batch["latents_control"] = noise(16, *GRID)
    if task == "flf2v-14B":
        batch["clip"] = noise(2, 257, 1280, dtype=torch.float16)
    elif task in ("i2v-14B", "i2v-14B-FC"):
        batch["clip"] = noise(257, 1280, dtype=torch.float16)
    return {name: value for name, value in batch.items() if name not in without}


class Recorder(nn.Module):
    """Stands for the network and keeps what it is given."""

    def forward(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        self.x, self.t, self.conditioning = x, t, conditioning
        return torch.full_like(x, 7.0)


def shown(task: str, batch: dict[str, Any] | None = None, **options: Any) -> Recorder:
    """What a network is given in a training step."""
    chosen = TrainOptions(task=task, **options)
    given = training_input(batch or cached(task), chosen)
    network = Recorder()
    predict(network, given.latents, HALF, given.conditioning, chosen)
    return network


def test_cached_latents_are_used_as_they_are():
    batch = cached("t2v-14B")
    latents = training_input(batch, TrainOptions(task="t2v-14B")).latents
    assert latents.dtype == torch.float32
    assert torch.equal(latents, batch["latents"].float())


def test_captions_are_padded_with_zeros_to_512_rows():
    batch = cached("t2v-14B")
    text = shown("t2v-14B", batch).conditioning["text"]
    assert text.shape == (2, 512, 32)
    for row, caption in zip(text, batch["t5"], strict=True):
        assert torch.equal(row[: len(caption)], caption)
        assert row[len(caption) :].abs().max() == 0


def test_a_caption_of_512_rows_fits_and_a_longer_one_is_refused():
    assert padded_text([torch.ones(512, 4)]).shape == (1, 512, 4)
    with pytest.raises(BadFileError, match="513 rows of text; the network takes 512"):
        padded_text([torch.ones(3, 4), torch.ones(513, 4)])


@pytest.mark.parametrize("task", ["t2v-1.3B", "t2v-14B", "t2i-14B", "t2v-A14B", "ti2v-5B", None])
def test_text_to_video_is_shown_text_alone(task: str | None):
    batch = cached("i2v-14B-FC" if task != "ti2v-5B" else "ti2v-5B")  # with more than it asks for
    assert set(shown(task, batch).conditioning) == {"text"}


def test_time_reaches_the_network_on_its_scale_of_1000():
    network, options = Recorder(), TrainOptions(task="t2v-14B")
    given = training_input(cached("t2v-14B"), options)
    predict(network, given.latents, torch.tensor([0.25, 1.0]), given.conditioning, options)
    assert network.t.tolist() == [250.0, 1000.0]


@pytest.mark.parametrize("task", ["i2v-14B", "i2v-A14B", "flf2v-14B"])
def test_image_to_video_is_shown_the_cached_mask_and_frames_beside_the_noise(task: str):
    batch = cached(task)
    network = shown(task, batch)
    assert torch.equal(network.conditioning["beside"], batch["latents_image"])
    assert ("pictures" in network.conditioning) == (task != "i2v-A14B"), "2.2 has no CLIP branch"


def test_first_and_last_picture_are_514_features_in_this_order():
    batch = cached("flf2v-14B")
    pictures = shown("flf2v-14B", batch).conditioning["pictures"]
    assert pictures.shape == (2, 514, 1280)
    assert torch.equal(pictures[:, :257], batch["clip"][:, 0])
    assert torch.equal(pictures[:, 257:], batch["clip"][:, 1])


def test_fun_control_is_shown_the_control_clip_and_only_the_first_frame_of_the_picture():
    batch = cached("i2v-14B-FC")
    beside = shown("i2v-14B-FC", batch).conditioning["beside"]
    assert beside.shape[1] == 32
    assert torch.equal(beside[:, :16], batch["latents_control"])
    assert torch.equal(beside[:, 16:, :1], batch["latents_image"][:, 4:, :1]), "the mask is not shown"
    assert beside[:, 16:, 1:].abs().max() == 0


def test_fun_control_from_text_is_shown_zeros_for_the_picture():
    network = shown("t2v-14B-FC")
    assert network.conditioning["beside"][:, 16:].abs().max() == 0
    assert "pictures" not in network.conditioning


def test_fun_control_from_text_takes_a_start_picture_where_one_was_cached():
    network = shown("t2v-14B-FC", cached("i2v-14B-FC"))
    assert network.conditioning["beside"][:, 16:, 0].abs().max() > 0
    assert network.conditioning["pictures"].shape == (2, 257, 1280)


def test_the_times_of_one_frame_training_reach_the_network():
    batch = {**cached("i2v-14B"), "f_indices": torch.tensor([[0, 1, 9], [0, 1, 3]], dtype=torch.int32)}
    batch["clip"] = torch.randn(2, 1, 257, 1280)
    network = shown("i2v-14B", batch)
    assert network.conditioning["frame_positions"].tolist() == [[0, 1, 9], [0, 1, 3]]
    assert network.conditioning["pictures"].shape == (2, 257, 1280)


@pytest.mark.parametrize("times", [[0, 1, 1024], [-1, 0, 1]])
def test_times_that_the_network_does_not_know_are_refused(times: list[int]):
    batch = {**cached("i2v-14B"), "f_indices": torch.tensor([[0, 1, 2], times], dtype=torch.int32)}
    with pytest.raises(BadFileError, match="the network knows 0 to 1023"):
        training_input(batch, TrainOptions(task="i2v-14B"))


def test_the_switch_for_the_time_embedding_changes_nothing():
    plain, forced = (shown("i2v-A14B", force_v2_1_time_embedding=on) for on in (False, True))
    assert torch.equal(plain.t, forced.t)
    assert torch.equal(plain.x, forced.x)


# TI2V-5B from a first frame


def test_a_known_first_frame_is_shown_clean_at_time_zero():
    batch, options = cached("ti2v-5B"), TrainOptions(task="ti2v-5B", image_to_video=True)
    given = training_input(batch, options)
    noisy = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(3))
    network = Recorder()
    predict(network, noisy, torch.tensor([0.25, 0.75]), given.conditioning, options)
    assert torch.equal(network.x[:, :, 0], given.latents[:, :, 0])
    assert torch.equal(network.x[:, :, 1:], noisy[:, :, 1:])
    assert network.t.tolist() == [[0.0, 250.0, 250.0], [0.0, 750.0, 750.0]]
    assert set(network.conditioning) == {"text"}


def test_a_known_first_frame_costs_nothing_and_teaches_nothing():
    options = TrainOptions(task="ti2v-5B", image_to_video=True)
    given = training_input(cached("ti2v-5B"), options)
    noise = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.3, 0.8])
    noisy = torch.lerp(given.latents, noise, t.view(-1, 1, 1, 1, 1))
    network = make_network("ti2v-5B")
    weight = network.head.head.weight.requires_grad_(True)
    velocity = predict(network, noisy, t, given.conditioning, options)
    loss = (velocity - (noise - given.latents)).square()
    assert loss[:, :, 0].max() < 1e-9
    assert loss[:, :, 1:].mean() > 0.1
    loss[:, :, 0].sum().backward(retain_graph=True)
    assert weight.grad is None or weight.grad.abs().max() == 0


def test_sampling_from_a_picture_arrives_at_it():
    options = TrainOptions(task="ti2v-5B")
    picture = torch.randn(2, 48, 1, 8, 12, generator=torch.Generator().manual_seed(4))
    conditioning = sample_conditioning(
        {"t5": cached("ti2v-5B")["t5"], "latents_image": picture}, 1.0, options
    )
    x = torch.randn(2, 48, 3, 8, 12, generator=torch.Generator().manual_seed(5))
    times = torch.linspace(1, 0, 5)
    for now, then in pairwise(times):
        x = x + (then - now) * predict(Recorder(), x, now.expand(2), conditioning, options)
    torch.testing.assert_close(x[:, :, :1], picture, rtol=0, atol=1e-5)


def test_a_lone_picture_is_no_first_frame_of_itself():
    batch = cached("ti2v-5B")
    batch["latents"] = batch["latents"][:, :, :1]
    conditioning = training_input(batch, TrainOptions(task="ti2v-5B", image_to_video=True)).conditioning
    assert set(conditioning) == {"text"}


# What is missing


def test_sampling_prompts_alone_is_enough_for_text_to_video():
    batch = {"t5": cached("t2v-14B")["t5"]}
    assert set(sample_conditioning(batch, 5.0, TrainOptions(task="t2v-14B"))) == {"text"}


@pytest.mark.parametrize(
    ("task", "name"),
    [("i2v-14B", "latents_image"), ("i2v-14B", "clip"), ("t2v-14B-FC", "latents_control")],
)
def test_sampling_without_a_picture_that_the_task_needs_names_it(task: str, name: str):
    with pytest.raises(ConfigError, match=f"--task {task} needs {name}"):
        sample_conditioning(cached(task, without=(name,)), 1.0, TrainOptions(task=task))


def shapes_of(batch: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """As they stand in the cache of one item."""
    return {name: tuple(value.shape[1:]) for name, value in batch.items() if name != "t5"}


@pytest.mark.parametrize(
    "task", ["t2v-14B", "i2v-14B", "flf2v-14B", "t2v-14B-FC", "i2v-14B-FC", "i2v-A14B", "ti2v-5B"]
)
def test_the_caches_of_a_task_fit_it(task: str):
    assert unfit(shapes_of(cached(task)), TrainOptions(task=task)) == ""


@pytest.mark.parametrize(
    ("cache", "task", "words"),
    [
        ("t2v-14B", "i2v-14B", "has no latents_image .*--task i2v-14B needs; .*--task i2v-14B --clip FILE"),
        ("t2v-14B", "i2v-A14B", "has no latents_image .*; cached with --task i2v-A14B it would"),
        ("i2v-A14B", "i2v-14B", "has no clip"),
        ("t2v-14B", "t2v-14B-FC", "has no latents_control"),
        ("t2v-14B-FC", "i2v-14B-FC", "has no latents_image"),
        ("i2v-14B", "flf2v-14B", r"first frame only: its clip has shape \[257, 1280\].*two pictures"),
    ],
)
def test_a_cache_that_lacks_what_a_task_needs_is_told_from_its_header(cache: str, task: str, words: str):
    reason = unfit(shapes_of(cached(cache)), TrainOptions(task=task))
    assert re.search(words, reason), reason


def test_one_frame_caches_with_a_single_control_train_the_first_and_last_frame_network():
    shapes = {**shapes_of(cached("flf2v-14B")), "clip": (1, 257, 1280), "f_indices": (2,)}
    assert unfit(shapes, TrainOptions(task="flf2v-14B")) == ""


@pytest.mark.parametrize("task", ["t2v-14B", "i2v-14B", "flf2v-14B", "t2v-14B-FC", "i2v-A14B", "ti2v-5B"])
def test_a_whole_training_step_runs_from_cached_tensors(task: str):
    options = TrainOptions(task=task, image_to_video=task == "ti2v-5B")
    network = make_network(task)
    weight = network.blocks[0].self_attn.q.weight.requires_grad_(True)
    inputs = training_input(cached(task), options)
    velocity = predict(network, inputs.latents, torch.tensor([0.3, 0.8]), inputs.conditioning, options)
    assert velocity.shape == inputs.latents.shape
    velocity.square().mean().backward()
    assert weight.grad.abs().max() > 0
