"""Which measured magnitude ratios fit a clip: the published ones are of tasks, and some of sizes."""

from __future__ import annotations

from collections.abc import Collection

from musubi_core.models.wan.defaults import USUAL_TASK
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.released import RELEASED

LARGE = 9480  # latent cells: half way, as a factor, from 832x480 to 1280x720


def ratios_for(options: TrainOptions, given: Collection[str], size: tuple[int, int]) -> str:
    """Their name, e.g. "t2v-14B", "i2v-14B-720p" or "ti2v-5B-i2v". options: settled."""
    task = options.task or USUAL_TASK
    if task == "i2v-14B":
        return f"{task}-{'720p' if size[0] * size[1] > LARGE else '480p'}"
    if task == "ti2v-5B":
        return f"{task}-{'i2v' if 'latents_image' in given else 't2v'}"
    if RELEASED[task].boundary is not None and options.dit_high_noise is None:
        return f"{task}-one-network"  # the ratios of the pair do not fit a network that does it all
    return task
