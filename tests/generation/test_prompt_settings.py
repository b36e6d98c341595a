"""Gaps of a prompt are filled, sizes are corrected with one line each, and the rest is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from musubi_core.errors import ConfigError
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.settings import DrawSettings, settle_prompt
from musubi_core.models.registry import architecture
from musubi_core.models.spec import Expert

ONE = (Expert(path=Path("dit")),)
PAIR = (Expert(path=Path("low"), t_max=0.875), Expert(path=Path("high"), t_min=0.875, cfg_scale=4.0))


def settle(
    name: str, *, experts: tuple[Expert, ...] = ONE, options: Any = None, **flags: Any
) -> tuple[DrawSettings, tuple[str, ...]]:
    spec = architecture(name)
    given = spec.train_options(**(options or {}))
    return settle_prompt(Prompt(text="a cat", **flags), spec, given, experts=experts, seed=7)


def wan(task: str, **flags: Any) -> tuple[DrawSettings, tuple[str, ...]]:
    return settle("wan", options={"task": task}, **flags)


def test_gaps_are_filled_as_the_architecture_is_usually_drawn():
    video, lines = settle("hunyuan_video")
    assert not lines
    assert (video.width, video.height, video.frames, video.steps, video.seed) == (256, 256, 129, 50, 7)
    assert (video.guidance, video.cfg_scales, video.shift, video.sampler) == (6.0, (1.0,), 7.0, "euler")
    assert video.negative_prompt is None, "no network is asked twice"

    edit, _ = settle("flux_kontext", width=1024, height=1024)
    assert edit.frames == 1
    assert edit.shift == pytest.approx(math.exp(1.15))
    assert edit.guidance == 2.5


@pytest.mark.parametrize(
    ("task", "steps", "shift", "scale", "frames"),
    [
        ("t2v-14B", 50, 5.0, 5.0, 81),
        ("t2i-14B", 50, 5.0, 5.0, 1),
        ("t2v-A14B", 40, 12.0, 3.0, 81),
        ("ti2v-5B", 50, 5.0, 5.0, 121),
    ],
)
def test_every_task_of_a_family_has_its_official_numbers(task, steps, shift, scale, frames):
    found, lines = wan(task)
    assert (found.steps, found.shift, found.cfg_scales, found.frames) == (steps, shift, (scale,), frames)
    assert found.sampler == "unipc"
    assert (found.negative_prompt or "").startswith("色调艳丽")
    assert not lines


def test_the_shift_follows_the_size_where_it_matters():
    assert wan("i2v-14B", image=Path("a"), width=832, height=480)[0].shift == 3.0
    assert wan("i2v-14B", image=Path("a"), width=1280, height=720)[0].shift == 5.0
    assert settle("flux_kontext", width=512, height=512)[0].shift == pytest.approx(1.878, abs=1e-3)
    assert settle("flux_kontext", width=512, height=512, flow_shift=3.0)[0].shift == 3.0
    dynamic = settle("flux_kontext", width=512, height=512, flow_shift=0.0)[0].shift
    assert dynamic == pytest.approx(1.878, abs=1e-3), "0 is musubi-tuner's word for the dynamic shift"


def test_two_networks_have_their_own_scales_and_a_prompt_may_set_one_or_both():
    options = {"task": "t2v-A14B"}
    assert settle("wan", options=options, experts=PAIR)[0].cfg_scales == (3.0, 4.0)
    assert settle("wan", options=options, experts=PAIR, cfg_scale=2.0)[0].cfg_scales == (2.0, 2.0)
    both, _ = settle("wan", options=options, experts=PAIR, cfg_scale=1.0, cfg_scale_high=2.0)
    assert both.cfg_scales == (1.0, 2.0)
    assert both.negative_prompt, "one of the two is asked twice"


def test_sizes_and_numbers_that_do_not_fit_are_corrected_with_one_line_each():
    found, lines = settle("hunyuan_video", width=330, height=250, frames=28, steps=5000)
    assert (found.width, found.height, found.frames, found.steps) == (320, 240, 25, 1000)
    assert lines == (
        "width 330 becomes 320: it must be a multiple of 16.",
        "height 250 becomes 240: it must be a multiple of 16.",
        "frames 28 becomes 25: it must be 4 * n + 1.",
        "steps 5000 becomes 1000: it must be 1 to 1000.",
    )
    assert wan("ti2v-5B", width=1290, height=720)[0].width == 1280
    assert settle("flux_kontext", frames=81)[0].frames == 1
    assert "draws pictures only" in settle("flux_kontext", frames=81)[1][0]


@pytest.mark.parametrize(
    ("name", "flags", "line"),
    [
        ("hunyuan_video", {"negative_prompt": "dark"}, "negative prompt has no effect"),
        ("wan", {"guidance": 6.0}, "guidance (--g) has no effect"),
        ("wan", {"cfg_scale_high": 2.0}, "no second network"),
        ("hunyuan_video", {"strength": 0.5}, "no clip to begin with"),
    ],
)
def test_what_has_no_effect_is_said(name, flags, line):
    (found,) = settle(name, **flags)[1]
    assert line in found


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("hunyuan_video", {"width": 8}, "width is 8 pixels; expected a multiple of 16"),
        ("hunyuan_video", {"height": 0}, "height is 0 pixels"),
        ("hunyuan_video", {"frames": 0}, "frames is 0"),
        ("hunyuan_video", {"seed": -1}, "seed is -1 in the prompt 'a cat'"),
        ("hunyuan_video", {"seed": 2**64}, "seed is 18446744073709551616"),
        ("hunyuan_video", {"guidance": -2.0}, "guidance is -2"),
        ("hunyuan_video", {"flow_shift": float("nan")}, "flow_shift is nan"),
        ("hunyuan_video", {"cfg_scale": float("inf")}, "cfg_scale is inf"),
        (
            "hunyuan_video",
            {"sampler": "heun"},
            "'heun' of the prompt 'a cat' is not known here; choose euler",
        ),
        ("wan", {"sampler": "euler"}, "choose unipc, dpm"),
        ("hunyuan_video", {"image": Path("a.png")}, "this network takes none"),
        ("wan", {"control_video": Path("a.mp4")}, "control clip"),
        ("hunyuan_video", {"control_images": (Path("a.png"),)}, "control picture"),
    ],
)
def test_what_cannot_be_mended_is_refused(name, flags, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        settle(name, **flags)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("i2v-14B", {}, "draws from a start picture"),
        ("i2v-A14B", {}, "draws from a start picture"),
        ("flf2v-14B", {"image": Path("a")}, "draws from a last picture"),
        ("t2v-14B-FC", {}, "draws from a control clip"),
        ("i2v-14B-FC", {"control_video": Path("a")}, "draws from a start picture"),
        ("ti2v-5B", {"image": Path("a"), "end_image": Path("b")}, "takes none"),
    ],
)
def test_pictures_that_a_task_cannot_do_without_are_asked_for(task, flags, message):
    with pytest.raises(ConfigError, match=message):
        wan(task, **flags)


def test_a_last_picture_needs_a_first_one():
    assert wan("i2v-A14B", image=Path("a"), end_image=Path("b"))[0].given.end_image == Path("b")
    with pytest.raises(ConfigError, match="start picture"):
        wan("i2v-A14B", end_image=Path("b"))


def test_the_network_for_first_and_last_frame_is_told_not_to_cut():
    found, _ = wan("flf2v-14B", image=Path("a"), end_image=Path("b"))
    assert (found.negative_prompt or "").startswith("镜头切换，色调艳丽")


def test_an_image_to_video_network_of_hunyuan_video_is_guided_by_a_negative_prompt():
    found, _ = settle("hunyuan_video", options={"dit_in_channels": 32}, image=Path("a"))
    assert (found.cfg_scales, found.guidance) == ((6.0,), 1.0)
    assert (found.negative_prompt or "").startswith("Aerial view")
