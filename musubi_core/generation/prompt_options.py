"""What is to be drawn: one prompt by options, a file of prompts, or line after line. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.prompt_files import ENDINGS

PICTURES = {
    "image": "start picture",
    "end_image": "last picture",
    "control_video": "control clip",
    "control_images": "control picture",
    "video": "clip to begin with",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """The prompt. With from_file and interactive, the other options are what a prompt without a flag gets."""

    prompt: str | None = option(None, help="What is to be drawn.")
    negative_prompt: str | None = option(
        None,
        help="What is to be avoided. Works with a guidance_scale above 1; some models have a usual one.",
    )
    from_file: Path | None = option(
        None,
        help="File of prompts with flags: .txt (one per line), .toml or .json. The other options are used "
        "where a prompt has no flag.",
    )
    interactive: bool = option(
        False, help="Read prompts with flags from the terminal, one after the other; an empty line ends."
    )
    video_size: tuple[int, ...] = option(
        (),
        ge=1,
        aliases=("image_size",),
        help="Height and width in pixels, in this order. Default: 256 256.",
    )
    video_length: int | None = option(
        None, ge=1, help="Frames of a clip, 4n + 1; 1 draws a picture. Default: as the model is made for."
    )
    infer_steps: int | None = option(None, ge=1, help="Steps. Default: as usual for the model.")
    seed: int | None = option(
        None, ge=0, le=2**64 - 1, help="The same seed draws the same picture. Default: a random one."
    )
    guidance_scale: float | None = option(
        None,
        help="Classifier-free guidance: how strongly the prompt beats the negative prompt. 1 is off and "
        "twice as fast. Default: as usual for the model.",
    )
    guidance_scale_high_noise: float | None = option(
        None, help="The same for the network for high noise, where a model has two. Default: as the other."
    )
    embedded_cfg_scale: float | None = option(
        None, ge=0.0, help="Guidance that the network itself is told, where it takes one."
    )
    flow_shift: float | None = option(
        None, ge=0.0, help="Time shift: higher spends more steps on the layout. Default: as usual."
    )
    sample_solver: str | None = option(None, help="Sampler, where the model offers several.")
    split_uncond: bool = option(
        False, help="Ask for prompt and negative prompt one after the other: slower, less memory."
    )
    image_path: Path | None = option(None, help="Start picture, for models that go on from one.")
    end_image_path: Path | None = option(None, help="Last picture, for models that end on one.")
    control_path: Path | None = option(
        None, help="Control clip, or folder of pictures, for models that follow one."
    )
    control_image_path: tuple[Path, ...] = option(
        (), help="Pictures to edit or to refer to, for models that take them."
    )
    video_path: Path | None = option(
        None, help="Clip, or folder of pictures, to begin with in the place of noise, for models that can."
    )
    strength: float | None = option(
        None,
        ge=0.0,
        le=1.0,
        help="How much of the clip in video_path is drawn anew: 1 keeps nothing. Default: 0.8.",
    )
    one_frame_inference: str | None = option(
        None,
        help="Draw one frame at a time of its own beside control pictures at theirs, for models that can, "
        "e.g. target_index=1,control_index=0.",
        advanced=True,
    )
    no_resize_control: bool = option(
        False, help="Keep the size of control pictures, cut to what the model can take."
    )

    def check(self) -> None:
        """Raises ConfigError unless there is exactly one source of prompts, and for a broken size."""
        sources = {
            "--prompt": self.prompt is not None,
            "--from_file": self.from_file is not None,
            "--interactive": self.interactive,
        }
        given = [name for name, there in sources.items() if there]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "No prompt is given"
            raise ConfigError(f"{found}. Give one of {', '.join(sources)}.")
        if self.video_size and len(self.video_size) != 2:
            raise ConfigError(
                f"--video_size has {len(self.video_size)} numbers. Give height and width, e.g. 544 960."
            )
        if self.from_file is not None and self.from_file.suffix.lower() not in ENDINGS:
            raise ConfigError(
                f"--from_file {self.from_file}: expected a file ending in {', '.join(ENDINGS)}."
            )

    @property
    def usual(self) -> Prompt:
        """What a prompt gets where it says nothing; the prompt itself where there is one."""
        height, width = self.video_size or (None, None)
        return Prompt(
            text=self.prompt or "",
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            frames=self.video_length,
            seed=self.seed,
            steps=self.infer_steps,
            guidance=self.embedded_cfg_scale,
            cfg_scale=self.guidance_scale,
            cfg_scale_high=self.guidance_scale_high_noise,
            flow_shift=self.flow_shift,
            sampler=self.sample_solver,
            image=self.image_path,
            end_image=self.end_image_path,
            control_video=self.control_path,
            control_images=self.control_image_path,
            resize_controls=not self.no_resize_control,
            video=self.video_path,
            strength=self.strength,
            one_frame=self.one_frame_inference,
        )

    def filled(self, prompt: Prompt) -> Prompt:
        """A prompt of a file with these options in its gaps."""
        usual = self.usual
        gaps = {
            one.name: getattr(usual, one.name)
            for one in fields(Prompt)
            if one.name not in ("text", "resize_controls") and getattr(prompt, one.name) in (None, ())
        }
        return replace(prompt, **gaps, resize_controls=prompt.resize_controls and not self.no_resize_control)


def check_pictures(prompt: Prompt) -> None:
    """Raises ConfigError naming a picture or clip of the prompt that does not exist."""
    for name, word in PICTURES.items():
        value = getattr(prompt, name)
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None and not path.exists():
                raise ConfigError(
                    f"The {word} {path} of the prompt {prompt.text!r} does not exist. Paths are seen from "
                    f"{Path.cwd()}, where the program was started."
                )
