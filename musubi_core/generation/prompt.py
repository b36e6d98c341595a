"""What one drawing is asked for, as users write it. No torch here: prompt files are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt with its flags. None: what the architecture, or the job that asks, usually takes.

    The letter is the flag in prompt files. `settings.settle_prompt` fills in, rounds and checks.
    """

    text: str
    negative_prompt: str | None = None  # n
    width: int | None = None  # w, pixels
    height: int | None = None  # h, pixels
    frames: int | None = None  # f, of the clip: 4n + 1; 1 is a picture
    seed: int | None = None  # d
    steps: int | None = None  # s
    guidance: float | None = None  # g, embedded: the network is told it
    cfg_scale: float | None = None  # l, classifier-free: the network is asked twice; 1 turns it off
    cfg_scale_high: float | None = None  # of the network for high noise, where there are two; None: cfg_scale
    flow_shift: float | None = None  # fs
    sampler: str | None = None  # one of SamplingDefaults.samplers
    image: Path | None = None  # i, the first frame
    end_image: Path | None = None  # ei, the last frame
    control_video: Path | None = None  # cn, a clip or a folder of pictures
    control_images: tuple[Path, ...] = ()  # ci, pictures to edit or to refer to
    resize_controls: bool = True  # False: control pictures keep their size, cut to what the network can take
    video: Path | None = None  # a clip to begin with in the place of noise
    strength: float | None = None  # how much of it is drawn anew, 0..1
    one_frame: str | None = None  # of, e.g. "target_index=1,control_index=0"
    magcache_retention_ratio: float | None = None  # mcrr; these three without effect unless MagCache is on
    magcache_threshold: float | None = None  # mct
    magcache_k: int | None = None  # mck
