"""The members of the Wan family under musubi-tuner's names, and what each is shown besides text. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one member of the family takes.

    start, end: the first (and last) frame of a clip, as latents. clip: the same as features of CLIP ViT-H.
    control: a control clip. Where start_optional is set, a start frame may be given.
    """

    start: bool = False
    end: bool = False
    clip: bool = False
    control: bool = False
    start_optional: bool = False
    small_latents: bool = False  # TI2V-5B's own VAE: 48 channels, 16 pixels


_TEXT = Task()
_TEXT_CONTROL = Task(control=True, start_optional=True)
TASKS: dict[str, Task] = {
    "t2v-1.3B": _TEXT,
    "t2v-14B": _TEXT,
    "t2i-14B": _TEXT,
    "i2v-14B": Task(start=True, clip=True),
    "flf2v-14B": Task(start=True, end=True, clip=True),
    "t2v-1.3B-FC": _TEXT_CONTROL,
    "t2v-14B-FC": _TEXT_CONTROL,
    "i2v-14B-FC": Task(start=True, clip=True, control=True),
    "t2v-A14B": _TEXT,
    "i2v-A14B": Task(start=True),
    "ti2v-5B": Task(small_latents=True),
}
