"""Which windows are cut from a video, and how its frames map to the architecture's rate. Pure arithmetic.

A window is (start, length) in frames *after* conversion to the architecture's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from musubi_core.config import ConfigError
from musubi_core.data.dataset_config import DatasetConfig

Window = tuple[int, int]

# Rates this close are the same rate: 23.976 and 24 differ by 0.1 %, and converting would only freeze one
# frame every 42 seconds.
SAME_RATE = Fraction(5, 1000)


def round_length(frames: int, temporal: int) -> int:
    """The longest clip of at most `frames` frames that the VAE encodes without padding: temporal * n + 1."""
    return (frames - 1) // temporal * temporal + 1


def round_targets(targets: Sequence[int], temporal: int, *, where: str) -> tuple[tuple[int, ...], list[str]]:
    """Sorted, distinct clip lengths of the form temporal * n + 1, and a note for each that was changed.

    Raises ConfigError for a length below 1.
    """
    notes: list[str] = []
    for target in targets:
        if target < 1:
            raise ConfigError(f"{where}: target_frames has {target}; a clip has at least 1 frame.")
        rounded = round_length(target, temporal)
        if rounded != target:
            notes.append(
                f"target_frames {target} became {rounded}: this model's clips have {temporal}n + 1 frames, "
                f"here {rounded} or {rounded + temporal}."
            )
    return tuple(sorted({round_length(target, temporal) for target in targets})), notes


def windows(frames: int, dataset: DatasetConfig, targets: Sequence[int], temporal: int) -> tuple[Window, ...]:
    """The distinct windows of a video of `frames` frames, in the order of `targets`, then of their start.

    targets: from `round_targets`. A target longer than the video gives none.
    """
    mode = dataset.frame_extraction
    if mode == "full":
        return ((0, round_length(min(frames, dataset.max_frames), temporal)),) if frames > 0 else ()
    found: dict[Window, None] = {}  # an ordered set: uniform may hit one start twice
    for length in targets:
        last = frames - length
        if last < 0:
            continue
        if mode == "head":
            starts: Sequence[int] = (0,)
        elif mode == "chunk":
            starts = range(0, last + 1, length)
        elif mode == "slide":
            starts = range(0, last + 1, dataset.frame_stride)
        else:
            gaps = max(1, dataset.frame_sample - 1)
            starts = [last * number // gaps for number in range(dataset.frame_sample)]
        found |= {(start, length): None for start in starts}
    return tuple(found)


class FrameRate:
    """Maps frames at the architecture's rate to frames of the file, exactly.

    Slower target: frame k shows the first source frame at or after time k / target, as musubi-tuner does (its
    floating-point sums sometimes land one frame later). Faster target: source frames are repeated, so that a
    window is never shorter than asked.
    """

    __slots__ = ("_step",)

    def __init__(self, source: float, target: float) -> None:
        step = _fraction(source) / _fraction(target)
        self._step = Fraction(1) if abs(step - 1) <= SAME_RATE else step

    @property
    def unchanged(self) -> bool:
        return self._step == 1

    def source_frame(self, frame: int) -> int:
        """The index in the file of the frame shown as `frame`."""
        exact = frame * self._step
        return -(-exact.numerator // exact.denominator) if self._step > 1 else int(exact)

    def count(self, source_frames: int) -> int:
        """Frames after conversion of a file of `source_frames` frames."""
        if source_frames < 1:
            return 0
        if self._step > 1:
            return int((source_frames - 1) / self._step) + 1
        exact = source_frames / self._step
        return -(-exact.numerator // exact.denominator)


def _fraction(rate: float) -> Fraction:
    """The rational behind a rate: 29.97002997... is 30000/1001."""
    return Fraction(rate).limit_denominator(1_000_000)
