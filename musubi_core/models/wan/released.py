"""The released members of the family: what tells their files apart, and how they are sampled. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.errors import ConfigError
from musubi_core.models.wan.config import Layout, WanConfig
from musubi_core.models.wan.tasks import TASKS

SMALL_SHIFT_AREA = 104 * 60  # latent cells of 832x480
EXPERT_HINTS = ("high_noise", "low_noise")  # in the names of Wan 2.2's files and folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """hidden: the network's width. boundary: the noise level between two experts, 0..1, None for one network.

    steps, shift, cfg_scale, frames, fps: of the official sampling. small_shift: of clips up to 832x480.
    high_cfg_scale: of the expert for high noise.
    """

    hidden: int
    steps: int = 50
    shift: float = 5.0
    small_shift: float | None = None
    cfg_scale: float = 5.0
    high_cfg_scale: float | None = None
    boundary: float | None = None
    frames: int = 81
    fps: float = 16.0


_TEXT_1B = Released(hidden=1536)
_TEXT_14B = Released(hidden=5120)
_IMAGE_14B = Released(hidden=5120, steps=40, small_shift=3.0)
RELEASED: dict[str, Released] = {
    "t2v-1.3B": _TEXT_1B,
    "t2v-14B": _TEXT_14B,
    "t2i-14B": Released(hidden=5120, frames=1),
    "i2v-14B": _IMAGE_14B,
    "flf2v-14B": _IMAGE_14B,
    "t2v-1.3B-FC": _TEXT_1B,
    "t2v-14B-FC": _TEXT_14B,
    "i2v-14B-FC": _IMAGE_14B,
    "t2v-A14B": Released(
        hidden=5120, steps=40, shift=12.0, cfg_scale=3.0, high_cfg_scale=4.0, boundary=0.875
    ),
    "i2v-A14B": Released(hidden=5120, steps=40, cfg_scale=3.5, high_cfg_scale=3.5, boundary=0.9),
    "ti2v-5B": Released(hidden=3072, frames=121, fps=24.0),
}


def layout_of(task: str) -> Layout:
    """What the network of a task takes and gives."""
    shown = TASKS[task]
    if shown.small_latents:
        return Layout(in_channels=48, out_channels=48)
    beside = 32 if shown.control else 20 if shown.start else 0  # control and image, or mask and image
    return Layout(in_channels=16 + beside, pictures=shown.clip or shown.control, two_pictures=shown.end)


LAYOUTS = {task: layout_of(task) for task in TASKS}


def task_of(config: WanConfig, path: Path, *, asked: str | None, experts: bool) -> str:
    """The task of the network in `path`, whose sizes are `config`.

    asked: --task. experts: a second network, for high noise, was given. Raises ConfigError when the file is
    of another task than the one that was asked for, or when it cannot tell and it matters.
    """
    fitting = [task for task, layout in LAYOUTS.items() if layout == config.layout]
    fitting = [task for task in fitting if RELEASED[task].hidden == config.hidden] or fitting
    if asked is not None:
        if asked not in fitting:
            raise ConfigError(
                f"{path} is no network for --task {asked}: it has {_words(config)}. It fits --task "
                f"{' or '.join(fitting)}."
            )
        return asked
    if len(fitting) == 1:
        return fitting[0]
    if any(TASKS[task].control for task in fitting):
        raise ConfigError(
            f"{path} is a Fun-Control network, which is trained with a start picture or without: the file "
            f"cannot tell. Give --task {' or --task '.join(fitting)}."
        )
    # Of the text-to-video models of one size, only the experts of 2.2 are sampled in another way.
    names = f"{path.parent.name}/{path.name}".lower()
    pair = experts or any(hint in names for hint in EXPERT_HINTS)
    return "t2v-A14B" if pair else "t2v-14B"


def _words(config: WanConfig) -> str:
    branch = "a branch for pictures" if config.picture_width else "no branch for pictures"
    both = " (first and last)" if config.picture_tokens else ""
    return (
        f"{config.in_channels} input channels, {config.out_channels} output channels, a width of "
        f"{config.hidden} and {branch}{both}"
    )
