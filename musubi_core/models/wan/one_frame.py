"""One-frame training: a target picture and its control pictures as frames of one latent, at chosen times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from musubi_core.errors import ConfigError
from musubi_core.models.spec import Pixels

CLEAN, TARGET = "fp_1f_clean_indices", "fp_1f_target_index"
INDEX_OPTIONS = (CLEAN, TARGET)
MOST_CONTROLS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOrder:
    """Frames in the order of time. slots: number of the control, None for the target. indices: the times."""

    slots: tuple[int | None, ...]
    indices: tuple[int, ...]


def frame_order(pixels: Pixels) -> FrameOrder:
    """The order of target and controls, from the dataset's keys. Raises ConfigError where they do not fit."""
    if pixels.frames.shape[1] != 1:
        raise ConfigError(
            f"--one_frame trains pictures, and an item has {pixels.frames.shape[1]} frames. Set "
            "image_directory or image_jsonl_file, or cache without --one_frame."
        )
    clean, target = pixels.item_options.get(CLEAN), pixels.item_options.get(TARGET)
    if target is None:
        raise ConfigError(
            f"--one_frame needs {TARGET} in the dataset file: the time of the target picture, e.g. 1. The "
            f"times of the controls are {CLEAN}, e.g. [0]."
        )
    clean = [0] if clean is None else list(clean)  # as musubi-tuner takes it
    counts = {len(own) for own in pixels.controls} or {0}
    if counts != {len(clean)} or not 1 <= len(clean) <= MOST_CONTROLS:
        raise ConfigError(
            f"{CLEAN} names {len(clean)} times, and an item has {max(counts)} control pictures. --one_frame "
            f"takes 1 or {MOST_CONTROLS} controls, each with its time."
        )
    return order_of(int(target), [int(time) for time in clean])


def order_of(target: int, clean: Sequence[int]) -> FrameOrder:
    """The order of the times of target and controls. Raises ConfigError for equal or negative ones."""
    times: dict[int | None, int] = {None: target, **dict(enumerate(clean))}
    if len(set(times.values())) != len(times) or min(times.values()) < 0:
        raise ConfigError(
            f"One frame at the time {target} and controls at {list(clean)} ({TARGET} and {CLEAN}): times "
            "must differ, and must not be negative."
        )
    slots = tuple(sorted(times, key=lambda slot: times[slot]))
    return FrameOrder(slots=slots, indices=tuple(times[slot] for slot in slots))
