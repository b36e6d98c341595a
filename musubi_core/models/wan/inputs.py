"""What the network is fed: in training from caches, in sampling from encoded prompts and pictures.

Conditioning holds `text` (B, 512, T) and, where the task has them, `beside` (B, C', F, H, W), `pictures`
(B, tokens, P), `frame_positions` (B, F) and `first_frame` (B, C, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.models.spec import Batch, Conditioning, TrainingInput
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.rope import POSITIONS
from musubi_core.models.wan.tasks import TASKS, Task

TIME_SCALE = 1000.0
TEXT_ROWS = 512  # the network was trained on captions of this length, all rows of which it looks at
MASK_CHANNELS = 4  # of `latents_image`, in front of the picture itself
LEAST_TIME = 1e-6  # keeps the way of a known frame finite at t = 0, where there is none left to go


def training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    """latents: (B, C, F, H, W) as cached, already normalised -> the same in float32."""
    latents = cast(Tensor, batch["latents"]).float()
    conditioning = _conditioning(batch, options)
    if options.image_to_video and latents.shape[2] > 1:
        conditioning["first_frame"] = latents[:, :, :1]
    return TrainingInput(latents=latents, conditioning=conditioning)


def sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    """The conditioning of encoded prompts, and of pictures under the names that caches have for them.

    TI2V-5B starts from a picture when `latents_image` is there, (B, 48, 1, H, W). No network of the family
    takes a guidance scale; classifier-free guidance is up to the sampler.
    """
    conditioning = _conditioning(batch, options)
    if _task(options).small_latents and "latents_image" in batch:
        conditioning["first_frame"] = cast(Tensor, batch["latents_image"]).float()
    return conditioning


def predict(
    network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: TrainOptions
) -> Tensor:
    """The velocity at x: (B, C, F, H, W); t: (B,) in 0..1.

    A known first frame (TI2V-5B) is shown clean and at t = 0. Its velocity is not predicted: it is that of
    the straight way from x to the frame. So sampling arrives at it, and in training it costs nothing.
    """
    given = {name: value for name, value in conditioning.items() if name != "first_frame"}
    known = conditioning.get("first_frame")
    if known is None:
        return network(x, t * TIME_SCALE, **given)
    known = known.to(x)
    times = (t * TIME_SCALE)[:, None].repeat(1, x.shape[2])
    times[:, 0] = 0
    velocity = network(torch.cat([known, x[:, :, 1:]], dim=2), times, **given)
    way = (x[:, :, :1] - known) / t.clamp(min=LEAST_TIME).view(-1, 1, 1, 1, 1)
    return torch.cat([way.to(velocity), velocity[:, :, 1:]], dim=2)


def _conditioning(batch: Batch, options: TrainOptions) -> dict[str, Tensor]:
    task = _task(options)
    found = {"text": padded_text(cast("Sequence[Tensor]", batch["t5"]))}
    if task.control:
        found["beside"] = _control(batch, task, options)
    elif task.start:
        found["beside"] = _needed(batch, "latents_image", options)
    if task.clip:
        found["pictures"] = picture_tokens(_needed(batch, "clip", options))
    elif task.start_optional and "clip" in batch:
        found["pictures"] = picture_tokens(cast(Tensor, batch["clip"]))
    if "f_indices" in batch:
        found["frame_positions"] = _positions(cast(Tensor, batch["f_indices"]))
    return found


def padded_text(captions: Sequence[Tensor]) -> Tensor:
    """Captions of (rows, T) each -> (B, 512, T), zeros behind the last row."""
    longest = max(len(caption) for caption in captions)
    if longest > TEXT_ROWS:
        raise BadFileError(
            f"A cached caption has {longest} rows of text; the network takes {TEXT_ROWS}. Delete its "
            "*_te.safetensors file and cache the text again."
        )
    return torch.stack([F.pad(caption, (0, 0, 0, TEXT_ROWS - len(caption))) for caption in captions])


def picture_tokens(clip: Tensor) -> Tensor:
    """CLIP's features of one picture (B, P, D), or of n pictures (B, n, P, D) -> (B, n * P, D)."""
    return clip.flatten(1, 2) if clip.ndim == 4 else clip


def _control(batch: Batch, task: Task, options: TrainOptions) -> Tensor:
    """(B, 32, F, H, W): the control clip, then the start frame with zeros behind it, or zeros alone."""
    control = _needed(batch, "latents_control", options)
    start = torch.zeros_like(control)
    if task.start or "latents_image" in batch:
        shown = _needed(batch, "latents_image", options)[:, MASK_CHANNELS:]
        start[:, :, :1] = shown[:, :, :1].to(control)
    return torch.cat([control, start], dim=1)


def _positions(indices: Tensor) -> Tensor:
    """(B, F) whole numbers, checked while they are on the CPU."""
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= POSITIONS:
        raise BadFileError(
            f"A cached latent puts its frames at the times {low} to {high}; the network knows 0 to "
            f"{POSITIONS - 1}. Mend fp_1f_clean_indices and fp_1f_target_index, and cache the latents again."
        )
    return indices.long()


def _needed(batch: Batch, name: str, options: TrainOptions) -> Tensor:
    if name not in batch:
        raise ConfigError(
            f"--task {options.task} needs {name}, which was not given. In training it comes from the latent "
            "caches (musubi cache-latents with the same --task), in sampling from a start picture, a last "
            "picture or a control clip."
        )
    return cast(Tensor, batch[name])


def _task(options: TrainOptions) -> Task:
    return TASKS[options.task] if options.task is not None else Task()
