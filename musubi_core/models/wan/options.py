"""The options of this architecture alone. No torch here: the command line builds its parser from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import ConfigError, option
from musubi_core.models.wan.released import RELEASED
from musubi_core.models.wan.tasks import TASKS, Task

CLIP_FILES = (
    "clip_vision_h.safetensors (Comfy-Org) or models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth "
    "(Wan-AI)"
)
EXPERT_LORAS = ("shared", "pair")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """What the VAE makes of pictures and clips, and which conditions are cached beside the latents."""

    task: str | None = option(
        None,
        choices=tuple(TASKS),
        help="The model that will be trained. It decides what is cached beside the latents: the start frame, "
        "first and last frame, a control clip. Without it, --i2v and --clip decide.",
    )
    i2v: bool = option(
        False, help="Cache the first frame of each clip as a condition, for image-to-video models."
    )
    clip: Path | None = option(
        None,
        help="The CLIP ViT-H image encoder of Wan 2.1's image-to-video models: clip_vision_h.safetensors or "
        "the official .pth. Turns on --i2v. Wan 2.2 has none.",
    )
    one_frame: bool = option(
        False,
        help="One-frame training: control pictures and the target become the frames of one latent, at the "
        "times that fp_1f_clean_indices and fp_1f_target_index of the dataset name.",
    )
    vae_cache_cpu: bool = option(
        False,
        help="Keep what the VAE remembers between frames in host memory. Saves GPU memory on large clips; "
        "the result is the same.",
    )

    @property
    def conditions(self) -> Task:
        """What is cached beside the latents. Without a task, control clips are taken where there are any."""
        known = TASKS[self.task] if self.task is not None else Task(control=True, start_optional=True)
        wants = self.i2v or self.clip is not None or self.one_frame
        return Task(
            start=known.start or wants,
            end=known.end and not self.one_frame,
            clip=self.clip is not None,
            control=known.control and not self.one_frame,
            small_latents=known.small_latents,
        )

    def check(self) -> None:
        """Raises ConfigError for conditions that the named task lacks, or does not take."""
        if self.task is None:
            return
        known = TASKS[self.task]
        given = {"i2v": self.i2v, "one_frame": self.one_frame, "clip": self.clip is not None}
        extra = [name for name, on in given.items() if on and not (known.start or known.start_optional)]
        if self.clip is not None and known.start and not known.clip:
            extra.append("clip")
        if self.one_frame and known.control:
            extra.append("one_frame")
        if extra:
            raise ConfigError(
                f"--{extra[0]} was given with --task {self.task}, which has no use for it. Remove it, or "
                "name the task that will be trained."
            )
        if known.clip and self.clip is None:
            raise ConfigError(f"--task {self.task} needs the CLIP image encoder. Set --clip to {CLIP_FILES}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Which text encoder turns captions into conditioning."""

    task: str | None = option(
        None,
        choices=tuple(TASKS),
        help="The model that will be trained. Only ti2v-5B must be named here: its clips have another frame "
        "rate, which decides how many are long enough.",
    )
    t5: Path | None = option(
        None,
        help="UMT5-XXL: ComfyUI's umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors, the "
        "official models_t5_umt5-xxl-enc-bf16.pth, or the Hugging Face folder.",
    )
    fp8_t5: bool = option(
        False, help="Keep the linear weights of UMT5-XXL in 8 bits: half the memory, slightly different text."
    )
    tokenizer: str | None = option(
        None,
        help="Tokenizer of UMT5: a folder with tokenizer.json or spiece.model, or a Hugging Face name. "
        "Needed only if it is neither inside the encoder's file nor beside it, and Hugging Face cannot be "
        "reached.",
        advanced=True,
    )

    def check(self) -> None:
        """Raises ConfigError when the text encoder is missing."""
        if self.t5 is None:
            raise ConfigError(
                "The text encoder UMT5-XXL was not given. Set --t5 to umt5_xxl_fp16.safetensors (ComfyUI's) "
                "or models_t5_umt5-xxl-enc-bf16.pth (the official one)."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Which member of the family is trained, and how its networks are loaded and shown what."""

    task: str | None = option(
        None,
        choices=tuple(TASKS),
        help="The model that is trained. Read from the file when not given, where the file tells.",
    )
    dit_dtype: str | None = option(
        None,
        help="Precision the network's weights are kept in: bf16, fp16 or fp32. Without it, the precision of "
        "the run.",
    )
    dit_high_noise: Path | None = option(
        None,
        help="The second network of Wan 2.2 A14B, for high noise; --dit is then the one for low noise. Each "
        "sample is trained on the network that its noise level belongs to.",
    )
    timestep_boundary: float | None = option(
        None,
        ge=0.0,
        le=1000.0,
        help="Noise level from which the high-noise network works, as 0.875 or 875. Without it 0.875 for "
        "t2v-A14B and 0.9 for i2v-A14B.",
    )
    offload_inactive_dit: bool = option(
        False, help="Keep the network that is not at work in host memory instead of on the GPU."
    )
    expert_loras: str = option(
        "shared",
        choices=EXPERT_LORAS,
        help="With two networks: train one LoRA that both share, or a pair, one file for each network.",
    )
    image_to_video: bool = option(
        False,
        help="Only for ti2v-5B, which does both: train it to go on from a given first frame, instead of "
        "from text alone. Pictures are then trained as before.",
    )
    force_v2_1_time_embedding: bool = option(
        False,
        help="Accepted for musubi-tuner's command lines. One noise level per sample is always embedded once, "
        "which gives the same result as embedding it for every token and takes less memory.",
        advanced=True,
    )

    @property
    def boundary(self) -> float | None:
        """Noise level between two networks, 0..1; None when neither the options nor the task name one."""
        if self.timestep_boundary is not None:
            given = self.timestep_boundary
            return given / 1000 if given > 1 else given
        return RELEASED[self.task].boundary if self.task is not None else None

    def check(self) -> None:
        """Raises ConfigError for contradictions."""
        if self.image_to_video and self.task not in (None, "ti2v-5B"):
            raise ConfigError(
                f"--image_to_video was given with --task {self.task}; only ti2v-5B can be trained both ways. "
                "Remove it: an image-to-video model is trained as one anyway."
            )
        if self.dit_high_noise is None:
            self._check_one_network()
            return
        if self.task is not None and self.boundary is None:
            pairs = " or ".join(task for task, released in RELEASED.items() if released.boundary)
            raise ConfigError(
                f"--dit_high_noise was given with --task {self.task}, which has one network. Set --task "
                f"{pairs}, or give a --timestep_boundary to train two networks of your own."
            )
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ConfigError(
                f"timestep_boundary is {self.timestep_boundary:g}, which leaves nothing for one of the two "
                "networks. Use a number between 0 and 1 (or 1000), or train one network without "
                "--dit_high_noise."
            )

    def _check_one_network(self) -> None:
        idle = {
            "timestep_boundary": self.timestep_boundary is not None,
            "offload_inactive_dit": self.offload_inactive_dit,
            "expert_loras": self.expert_loras != "shared",
        }
        for name, given in idle.items():
            if given:
                raise ConfigError(
                    f"--{name} is for two networks, and only one was given. Set --dit_high_noise to the "
                    f"network for high noise, or remove --{name}."
                )
