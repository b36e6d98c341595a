"""What the files of a run tell: which task they are for, and which network answers at which noise level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.spec import Expert
from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.detect import detect, refuse
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.released import RELEASED, task_of

HIGH, LOW = "high_noise", "low_noise"


def settle(dit: Path, options: TrainOptions) -> TrainOptions:
    """The options with the task that the files are for. Reads headers only.

    Raises ConfigError when the options contradict each other or the files, or when the files leave it open,
    and BadFileError when one of them is no Wan network.
    """
    options.check()
    config = _config_of(dit)
    high = options.dit_high_noise
    task = task_of(config, dit, asked=options.task, experts=high is not None)
    settled = replace(options, task=task)
    settled.check()
    if high is not None:
        if high.resolve() == dit.resolve():
            raise ConfigError(
                f"--dit and --dit_high_noise are the same file, {dit}. Give the network for low noise as "
                "--dit and the one for high noise as --dit_high_noise."
            )
        other = _config_of(high)
        if other != config:
            raise ConfigError(
                f"{dit} and {high} are not the two networks of one model: {_difference(config, other)}. Give "
                "the low_noise and the high_noise file of the same release."
            )
    return settled


def experts(dit: Path, options: TrainOptions) -> tuple[Expert, ...]:
    """The network of --dit for all noise levels, or the two of Wan 2.2 A14B. options: settled.

    Raises ConfigError when the boundary between two networks is not known.
    """
    high, boundary = options.dit_high_noise, options.boundary
    if high is None:
        return (Expert(path=dit),)
    if boundary is None:
        raise ConfigError("Two networks need --task or --timestep_boundary, which says where one ends.")
    pair = options.expert_loras == "pair"
    return (
        Expert(
            name=LOW,
            path=dit,
            t_max=boundary,
            lora=LOW if pair else "",
            offload=options.offload_inactive_dit,
        ),
        Expert(
            name=HIGH,
            path=high,
            t_min=boundary,
            lora=HIGH if pair else "",
            offload=options.offload_inactive_dit,
            cfg_scale=RELEASED[options.task].high_cfg_scale if options.task is not None else None,
        ),
    )


def _config_of(path: Path) -> WanConfig:
    with open_checkpoint(path) as checkpoint:
        found = detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{path} is not a Wan network: {refuse(checkpoint.header)}")
    config: WanConfig = found.config
    return config


def _difference(one: WanConfig, other: WanConfig) -> str:
    """The first size that differs, e.g. "in_channels 16 and 36"."""
    names = [name for name in WanConfig.__slots__ if getattr(one, name) != getattr(other, name)]
    return f"{names[0]} is {getattr(one, names[0])} in one and {getattr(other, names[0])} in the other"
