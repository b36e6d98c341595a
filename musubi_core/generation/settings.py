"""What one drawing is made with: a prompt with every gap filled in. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from musubi_core.errors import ConfigError
from musubi_core.generation.one_frame import parse_one_frame
from musubi_core.generation.prompt import Prompt
from musubi_core.models.spec import ArchSpec, Expert, OneFrame, SamplingDefaults, TakenPictures

SMALL = 256  # pixels: width and height where none are given, as in musubi-tuner
MOST_STEPS = 1000
MOST_SEED = 2**64 - 1
USUAL_STRENGTH = 0.8
ROUNDING = 1e-6  # so that 0.3 of 10 steps are 3
MOST = 1000  # of a scale or a shift: more is a slip
KINDS = {
    "image": "start picture (--image_path, --i in a prompt line)",
    "end_image": "last picture (--end_image_path, --ei)",
    "control_video": "control clip (--control_path, --cn)",
    "control_images": "control picture (--control_image_path, --ci)",
    "video": "clip to begin with (--video_path)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """Everything that decides a picture besides the weights. Equal settings draw equal pictures.

    given: the prompt it was made from, which holds the paths of pictures. text, negative_prompt: as encoded;
    the latter None where no network is asked twice. cfg_scales: one per network, lowest noise first.
    strength: the share of the steps that is taken, the last ones; less than 1 begins with a given clip.
    """

    given: Prompt
    text: str
    negative_prompt: str | None
    width: int
    height: int
    frames: int
    seed: int
    steps: int
    guidance: float
    cfg_scales: tuple[float, ...]
    shift: float
    sampler: str
    split_uncond: bool
    one_frame: OneFrame | None
    strength: float

    @property
    def taken_steps(self) -> int:
        """How many steps are taken."""
        return int(self.steps * self.strength + ROUNDING)


def settle_prompt(
    prompt: Prompt,
    spec: ArchSpec,
    options: Any,
    *,
    experts: Sequence[Expert],
    seed: int,
    split_uncond: bool = False,
) -> tuple[DrawSettings, tuple[str, ...]]:
    """The settings of a prompt, and a line for each thing that was corrected or is without effect.

    options: settled train options. seed: for a prompt that names none. Raises ConfigError for what cannot be
    mended: see `_check`.
    """
    usual = spec.sampling_with(options)
    one_frame = None if prompt.one_frame is None else parse_one_frame(prompt.one_frame)
    prompt = prompt if one_frame is None else _with_controls(prompt)
    _check(prompt, usual, one_frame)
    lines: list[str] = []
    shape = spec.latent_with(options)
    width, height = (
        _floor(name, SMALL if value is None else value, shape.pixel_step, lines)
        for name, value in (("width", prompt.width), ("height", prompt.height))
    )
    usual_frames = usual.frames if prompt.frames is None else prompt.frames
    frames = _frames(1 if one_frame is not None else usual_frames, shape.temporal, lines)
    scales = _scales(prompt, usual, experts)
    twice = any(scale != 1 for scale in scales)
    negative = usual.negative_prompt if prompt.negative_prompt is None else prompt.negative_prompt
    lines += _without_effect(prompt, usual, twice=twice, networks=len(experts))
    settings = DrawSettings(
        given=prompt,
        text=prompt.text,
        negative_prompt=negative if twice else None,
        width=width,
        height=height,
        frames=frames,
        seed=seed if prompt.seed is None else prompt.seed,
        steps=_steps(usual.steps if prompt.steps is None else prompt.steps, lines),
        guidance=usual.guidance if prompt.guidance is None else prompt.guidance,
        cfg_scales=scales,
        # 0 means the usual one, as for musubi-tuner's Kontext
        shift=prompt.flow_shift or usual.shift_at(height // shape.spatial, width // shape.spatial),
        sampler=prompt.sampler or usual.samplers[0],
        split_uncond=split_uncond or usual.split_uncond,
        one_frame=one_frame,
        strength=_strength(prompt),
    )
    if settings.taken_steps < 1:
        raise ConfigError(
            f"strength {settings.strength:g} leaves none of the {settings.steps} steps of {_quoted(prompt)}. "
            "Raise one of them."
        )
    return settings, tuple(lines)


def _without_effect(prompt: Prompt, usual: SamplingDefaults, *, twice: bool, networks: int) -> Iterator[str]:
    """A line for each thing that the prompt asks for in vain."""
    if prompt.negative_prompt and not twice:
        yield "The negative prompt has no effect with a cfg_scale of 1. Set --guidance_scale (--l) to more."
    if prompt.guidance is not None and not usual.takes_guidance:
        yield "guidance (--g) has no effect: this network is not told any. Use --guidance_scale (--l)."
    if prompt.cfg_scale_high is not None and networks == 1:
        yield "cfg_scale_high has no effect: there is no second network for high noise."
    if prompt.strength is not None and prompt.video is None:
        yield "strength has no effect: there is no clip to begin with."


def _strength(prompt: Prompt) -> float:
    if prompt.video is None:
        return 1.0
    return USUAL_STRENGTH if prompt.strength is None else prompt.strength


def _with_controls(prompt: Prompt) -> Prompt:
    """Start and last picture become controls where one frame is drawn and no others are given."""
    both = tuple(path for path in (prompt.image, prompt.end_image) if path is not None)
    return replace(prompt, image=None, end_image=None, control_images=prompt.control_images or both)


def _check(prompt: Prompt, usual: SamplingDefaults, one_frame: OneFrame | None) -> None:
    """Raises ConfigError for numbers out of range, foreign samplers, and pictures too few or too many."""
    limits = {"seed": (0, MOST_SEED), "guidance": (0, MOST), "flow_shift": (0, MOST)}
    limits["strength"] = (0, 1)
    limits |= dict.fromkeys(("cfg_scale", "cfg_scale_high"), (-MOST, MOST))
    for name, (least, most) in limits.items():
        value = getattr(prompt, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} is {value} in {_quoted(prompt)}; expected {least} to {most}.")
    if prompt.sampler is not None and prompt.sampler not in usual.samplers:
        raise ConfigError(
            f"The sampler {prompt.sampler!r} of {_quoted(prompt)} is not known here; choose "
            f"{', '.join(usual.samplers)}."
        )
    taken = usual.pictures
    if one_frame is not None:
        if not taken.one_frame[1]:
            raise ConfigError(
                f"--of was given in {_quoted(prompt)}, and this network draws no single frames."
            )
        if len(one_frame.controls) != len(prompt.control_images):
            raise ConfigError(
                f"--of names {len(one_frame.controls)} times of control pictures (control_index), and "
                f"{_quoted(prompt)} gives {len(prompt.control_images)} pictures (--ci). Give a time for each."
            )
        taken = TakenPictures(control_images=taken.one_frame)
    counts = {
        "image": int(prompt.image is not None),
        "end_image": int(prompt.end_image is not None),
        "control_video": int(prompt.control_video is not None),
        "control_images": len(prompt.control_images),
        "video": int(prompt.video is not None),
    }
    for kind, count in counts.items():
        least, most = getattr(taken, kind)
        if count < least:
            raise ConfigError(
                f"This network draws from a {KINDS[kind]}, and {_quoted(prompt)} gives "
                f"{count or 'none'}. Add it to the prompt."
            )
        if most is not None and count > most:
            raise ConfigError(
                f"{_quoted(prompt)} gives {count} x {KINDS[kind]}; this network takes "
                f"{f'at most {most}' if most else 'none'}. Remove it, or choose another model."
            )


def _floor(name: str, value: int, step: int, lines: list[str]) -> int:
    if value < step:
        raise ConfigError(f"{name} is {value} pixels; expected a multiple of {step}.")
    floored = value // step * step
    if floored != value:
        lines.append(f"{name} {value} becomes {floored}: it must be a multiple of {step}.")
    return floored


def _frames(frames: int, temporal: int, lines: list[str]) -> int:
    if frames < 1:
        raise ConfigError(f"frames is {frames}; expected 1 for a picture, or more for a clip.")
    if not temporal:
        if frames > 1:
            lines.append(f"frames {frames} becomes 1: this model draws pictures only.")
        return 1
    floored = (frames - 1) // temporal * temporal + 1
    if floored != frames:
        lines.append(f"frames {frames} becomes {floored}: it must be {temporal} * n + 1.")
    return floored


def _steps(steps: int, lines: list[str]) -> int:
    clamped = min(max(steps, 1), MOST_STEPS)
    if clamped != steps:
        lines.append(f"steps {steps} becomes {clamped}: it must be 1 to {MOST_STEPS}.")
    return clamped


def _scales(prompt: Prompt, usual: SamplingDefaults, experts: Sequence[Expert]) -> tuple[float, ...]:
    """The scale of each network, lowest noise first."""
    scales = []
    for number, expert in enumerate(experts):
        own = usual.cfg_scale if expert.cfg_scale is None else expert.cfg_scale
        scale = own if prompt.cfg_scale is None else prompt.cfg_scale
        if number and prompt.cfg_scale_high is not None:
            scale = prompt.cfg_scale_high
        scales.append(scale)
    return tuple(scales)


def _quoted(prompt: Prompt) -> str:
    """The prompt as messages name it."""
    short = prompt.text if len(prompt.text) <= 40 else prompt.text[:37] + "..."
    return f"the prompt {short!r}"
