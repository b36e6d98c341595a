"""What the network is fed: in training from caches, in sampling from encoded prompts.

Conditioning holds `text` (B, L, T), `text_lengths` (B whole numbers), `pooled` (B, P), `guidance` (B,) and,
for image-to-video networks, `first_frame` (B, C, 1, H, W).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musubi_core.errors import BadFileError
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import Batch, Conditioning, TrainingInput
from musubi_core.sampling.through import straight

LATENT_SCALE = 0.476986  # caches hold the VAE's own latents; the network was trained on these times this
TIME_SCALE = 1000.0
GUIDANCE_SCALE = 1000.0  # in sampling; see TrainOptions.guidance_multiplier for training


def training_input(batch: Batch, options: TrainOptions) -> TrainingInput:
    """latents: (B, 16, F, H, W) as cached -> what the network sees as clean data, float32."""
    latents = cast(Tensor, batch["latents"]).float() * LATENT_SCALE
    guidance = torch.full(
        (len(latents),), options.guidance_scale * options.guidance_multiplier, device=latents.device
    )
    conditioning = {**_text(batch), "guidance": guidance}
    if options.dit_in_channels > latents.shape[1]:
        conditioning["first_frame"] = latents[:, :, :1]
    return TrainingInput(latents=latents, conditioning=conditioning)


def sample_conditioning(batch: Batch, guidance: float, options: TrainOptions) -> Conditioning:
    """The conditioning of encoded prompts with `guidance` as users know it (6.0, not 6000).

    A network that sees the first frame is shown `latents_image`, (B, 16, 1, H, W) as cached, if it is there.
    """
    text = _text(batch)
    pooled = cast(Tensor, text["pooled"])
    found = {**text, "guidance": torch.full((len(pooled),), guidance * GUIDANCE_SCALE, device=pooled.device)}
    if "latents_image" in batch:
        found["first_frame"] = cast(Tensor, batch["latents_image"]).float() * LATENT_SCALE
    return found


def predict(
    network: nn.Module, x: Tensor, t: Tensor, conditioning: Conditioning, options: TrainOptions
) -> Tensor:
    """The velocity at x: (B, 16, F, H, W); t: (B,) in 0..1."""
    if options.dit_in_channels > x.shape[1]:
        x = torch.cat([x, _image_channels(x, conditioning.get("first_frame"))], dim=1)
    return network(
        x,
        t * TIME_SCALE,
        text=conditioning["text"],
        lengths=conditioning["text_lengths"],
        pooled=conditioning["pooled"],
        guidance=conditioning["guidance"],
        through=conditioning.get("through", straight),
    )


def _image_channels(x: Tensor, first_frame: Tensor | None) -> Tensor:
    """The clean first frame, and zeros for all later ones; zeros everywhere without a picture. Like x."""
    if first_frame is None:
        return torch.zeros_like(x)
    return F.pad(first_frame.to(x), (0, 0, 0, 0, 0, x.shape[2] - 1))


def _text(batch: Batch) -> dict[str, Tensor | tuple[int, ...]]:
    mask = cast(Tensor, batch["llm_mask"])
    # Lengths are needed as numbers before the first block; a mask on the CPU gives them without a wait.
    lengths = tuple(int(length) for length in mask.sum(dim=1).tolist())
    if min(lengths) < 1:
        raise BadFileError(
            "A cached caption has no valid text token (llm_mask is all zero), which no encoder writes. "
            "Delete its *_te.safetensors file and cache the text again."
        )
    longest = max(lengths)
    return {
        "text": cast(Tensor, batch["llm"])[:, :longest],
        "text_lengths": lengths,
        "pooled": cast(Tensor, batch["clipL"]),
    }
