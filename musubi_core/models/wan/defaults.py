"""What depends on the task: the geometry of latents, and how clips are sampled. No torch."""

from __future__ import annotations

from typing import Any

from musubi_core.config import LatentShape
from musubi_core.models.spec import SamplingDefaults, TakenPictures
from musubi_core.models.wan.colours import WAN21
from musubi_core.models.wan.negative import negative_prompt
from musubi_core.models.wan.one_frame import MOST_CONTROLS
from musubi_core.models.wan.options import LatentOptions, TrainOptions
from musubi_core.models.wan.released import RELEASED, SMALL_SHIFT_AREA
from musubi_core.models.wan.tasks import TASKS, Task

SAMPLERS = ("unipc", "dpm++", "vanilla")
USUAL_TASK = "t2v-14B"  # musubi-tuner's default; all but ti2v-5B share its geometry


def latent_for(options: Any) -> LatentShape:
    """The latents of a task, and how many controls its items have when latents are cached.

    options: of any job. Those that do not encode latents leave any number of controls alone.
    """
    task = options.task or USUAL_TASK
    small = TASKS[task].small_latents
    least, most = _controls(options) if isinstance(options, LatentOptions) else (0, None)
    return LatentShape(
        architecture="wan",
        short="wan",
        channels=48 if small else 16,
        spatial=16 if small else 8,
        temporal=4,
        pixel_step=32 if small else 16,
        fps=RELEASED[task].fps,
        min_controls=least,
        max_controls=most,
    )


def _controls(options: LatentOptions) -> tuple[int, int]:
    """The fewest and the most per item."""
    if options.one_frame:
        return 1, 2
    if options.task is None:
        return 0, 1  # a dataset with control clips gets them cached, as in musubi-tuner
    control = int(TASKS[options.task].control)
    return control, control


def sampling_for(options: TrainOptions) -> SamplingDefaults:
    """The official settings of a task. Nothing of the family takes an embedded guidance scale."""
    name = options.task or USUAL_TASK
    released, task = RELEASED[name], TASKS[name]

    def shift_for(height: int, width: int) -> float:
        small = released.small_shift is not None and height * width <= SMALL_SHIFT_AREA
        return released.small_shift if small and released.small_shift is not None else released.shift

    return SamplingDefaults(
        steps=released.steps,
        shift=released.shift,
        shift_for=shift_for,
        guidance=1.0,
        cfg_scale=released.cfg_scale,
        fps=released.fps,
        frames=released.frames,
        takes_guidance=False,
        negative_prompt=negative_prompt(last_frame=task.end),
        samplers=SAMPLERS,
        split_uncond=True,  # as the official programs ask; large clips leave no room for two at once
        pictures=_pictures(task),
        colours=None if task.small_latents else WAN21,
    )


def _pictures(task: Task) -> TakenPictures:
    """The network for two frames wants both; any other that begins with a frame may be given a last one."""
    image = 1 if task.start else 0
    optional = task.start or task.start_optional or task.small_latents
    return TakenPictures(
        image=(image, int(optional)),
        end_image=(int(task.end), int(task.start and not task.control)),
        control_video=(int(task.control), int(task.control)),
        one_frame=(1, MOST_CONTROLS) if task.start and not task.control else (0, 0),
    )
