"""The pictures of a drawing, under the names and in the form that latent caches have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from musubi_core.errors import ConfigError
from musubi_core.models.spec import EncodedPictures, GivenPictures, LatentCodec
from musubi_core.models.wan.latents import WanCodec
from musubi_core.models.wan.one_frame import order_of
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.tasks import TASKS, Task


def encode_pictures(codec: LatentCodec, given: GivenPictures, options: TrainOptions) -> EncodedPictures:
    """latents_image, latents_control and clip, as far as the task takes them. options: settled.

    latents_image: (4 + C, f, h, w), or (48, 1, h, w) for TI2V-5B, whose first frame it is. A network for
    first and last frame looks at both with CLIP, any other at the first.
    """
    vae = cast(WanCodec, codec)
    task = TASKS[options.task] if options.task is not None else Task()
    if given.one_frame is not None:
        return _one_frame(vae, given)
    found: dict[str, Tensor] = {}
    if given.control_video is not None:
        found["latents_control"] = vae.latents_of(vae.signed(given.control_video[None]))
    if given.image is not None:
        if task.small_latents:
            found["latents_image"] = vae.latents_of(vae.signed(given.image[None, None]))
        else:
            found |= _known_frames(vae, given, task)
    return EncodedPictures(tensors=_first(found))


def _first(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a batch of one, on the CPU."""
    return {name: tensor[0].cpu() for name, tensor in found.items()}


def _one_frame(vae: WanCodec, given: GivenPictures) -> EncodedPictures:
    """Control pictures as frames of one latent, at their times, around the one that is drawn."""
    wanted = given.one_frame
    assert wanted is not None
    if wanted.target is None:
        raise ConfigError(
            "--of names no time for the frame that is drawn. Add it, e.g. --of target_index=1,control_index=0"
        )
    order = order_of(wanted.target, wanted.controls)
    controls = [vae.signed(picture[None, None]) for picture in given.control_images]
    found = vae.in_order(order, controls, [vae.latents_of(one) for one in controls])
    return EncodedPictures(tensors=_first(found), frames=len(order.slots), result=order.slots.index(None))


def _known_frames(vae: WanCodec, given: GivenPictures, task: Task) -> dict[str, Tensor]:
    """A clip of which only the given frames are known."""
    assert given.image is not None
    frames, height, width = given.size
    if task.control:
        frames = 1  # the control clip says the rest
    clip = torch.zeros((1, frames, height, width, 3), dtype=torch.uint8)
    clip[0, 0] = given.image
    known = [0]
    if given.end_image is not None:
        if frames == 1:
            raise ConfigError(
                "A last picture was given for a drawing of one frame. Set --f to 5 or more, or leave it out."
            )
        clip[0, -1] = given.end_image
        known.append(-1)
    signed = vae.signed(clip)
    found: dict[str, Any] = {"latents_image": vae.known_frames(signed, known)}
    if vae.sees:
        found["clip"] = vae.views(signed, known if task.end else [0])
    return found
