"""What the latent cache of an item must hold for a task. Names and shapes only, no torch."""

from __future__ import annotations

from musubi_core.models.spec import Shapes
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.tasks import TASKS

# What each tensor is, in words for the user.
WORDS = {
    "latents_image": "the start frame as latents",
    "latents_control": "the control clip as latents",
    "clip": "what the CLIP image encoder sees of the start frame",
}


def unfit(shapes: Shapes, options: TrainOptions) -> str:
    """Why an item cannot be trained on, in words that follow its path; "" when it can. options: settled."""
    if options.task is None:
        return ""
    task = TASKS[options.task]
    wanted = {"latents_image": task.start, "clip": task.clip, "latents_control": task.control}
    for name, needed in wanted.items():
        if needed and name not in shapes:
            return f"has no {name} ({WORDS[name]}), which --task {options.task} needs{_flags(options.task)}."
    if task.end and "f_indices" not in shapes and not _two_pictures(shapes["clip"]):
        return (
            f"knows the first frame only: its clip has shape {list(shapes['clip'])}, and --task "
            f"{options.task} needs two pictures, first and last{_flags(options.task)}."
        )
    return ""


def _two_pictures(clip: tuple[int, ...]) -> bool:
    return len(clip) == 3 and clip[0] == 2


def _flags(task: str) -> str:
    """How caching is told to make it."""
    clip = " --clip FILE" if TASKS[task].clip else ""
    return f"; cached with --task {task}{clip} it would have it"
