"""What is cached for one clip or picture: its latents, and the pictures that the network is shown with them.

Legend: B items, F pixel frames (4k + 1), H x W pixels, f x h x w latents, C = 16 channels, P x D features.

    latents          (C, f, h, w)     always
    latents_image    (4 + C, f, h, w) mask of known frames, then the clip with all others grey
    latents_control  (C, f, h, w)     a control clip
    clip             (n, P, D)        CLIP's view of n known pictures; (P, D) of a single start frame
    f_indices        (f,) int32       one-frame training: the time of each frame
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musubi_core.encoders.clip_vision import open_clip_vision, picture_states, read_clip_vision_sizes
from musubi_core.encoders.pixels import to_signed
from musubi_core.encoders.precision import dtype_name
from musubi_core.errors import ConfigError
from musubi_core.files.digest import weights_identity
from musubi_core.models.spec import EncoderRequest, LatentEncoding, Pixels
from musubi_core.models.wan.images import clip_input, frame_mask, with_unknown_frames
from musubi_core.models.wan.one_frame import INDEX_OPTIONS, FrameOrder, frame_order
from musubi_core.models.wan.options import LatentOptions
from musubi_core.models.wan.tasks import Task
from musubi_core.models.wan.vae import WanVae, math_dtype, open_vae, read_layout
from musubi_core.models.wan.vae_config import WAN21, WAN22, VaeKind

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

FEATURES = torch.float16  # how CLIP's features are stored, whatever the latents are


def latents(request: EncoderRequest) -> LatentEncoding:
    """How to make latents with the VAE in `request.weights`. Reads headers, no weights."""
    options: LatentOptions = request.options or LatentOptions()
    if request.decodes_only:
        options = replace(options, clip=None)
    else:
        options.check()
    path = request.weights
    if path is None:
        raise ConfigError(f"The VAE was not given. Set --vae to {WAN21.files}; for TI2V-5B {WAN22.files}.")
    kind = read_layout(path).kind
    _check_kind(kind, options, path)
    wants = options.conditions
    stored = request.dtype or torch.bfloat16
    math = math_dtype(stored, request.device)
    settings: dict[str, Any] = {
        "posterior": "mode",
        "dtype": dtype_name(stored),
        "math": dtype_name(math),
        "start": wants.start,
        "end": wants.end,
        "one_frame": options.one_frame,
        "clip": None,
    }
    if options.clip is not None:
        read_clip_vision_sizes(options.clip)  # refuses a foreign file before any media is read
        settings["clip"] = weights_identity(options.clip)

    def open_codec() -> WanCodec:
        vae = open_vae(path, device=request.device, dtype=math, cache_cpu=options.vae_cache_cpu)
        eyes = None if options.clip is None else open_clip(options.clip, request.device)
        return WanCodec(vae, eyes, options=options, stored=stored)

    return LatentEncoding(
        identity=weights_identity(path),
        settings=settings,
        open=open_codec,
        item_options=INDEX_OPTIONS if options.one_frame else (),
        controls_are_frames=options.one_frame,
        tensors=_beside(wants, options),
    )


def _beside(wants: Task, options: LatentOptions) -> tuple[str, ...]:
    """What every item gets beside its latents. Without a task, a control clip is no duty."""
    named = {
        "latents_image": wants.start,
        "latents_control": wants.control and options.task is not None,
        "clip": wants.clip,
        "f_indices": options.one_frame,
    }
    return tuple(name for name, there in named.items() if there)


def open_clip(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """CLIP ViT-H as a function: (B, 3, H, W) in -1..1 -> (B, P, D) float16 on the CPU."""
    size = read_clip_vision_sizes(path).image
    model: CLIPVisionModel = open_clip_vision(path, device=device, dtype=math_dtype(FEATURES, device))

    def look(pictures: Tensor) -> Tensor:
        return picture_states(model, clip_input(pictures, size)).to("cpu", FEATURES)

    return look


class WanCodec:
    """An opened VAE, and CLIP where it is wanted, see `LatentCodec`."""

    def __init__(
        self,
        vae: WanVae,
        look: Callable[[Tensor], Tensor] | None,
        *,
        options: LatentOptions,
        stored: torch.dtype,
    ) -> None:
        self._vae = vae
        self._look = look
        self._wants: Task = options.conditions
        self._options = options
        self._stored = stored

    def encode(self, pixels: Pixels) -> list[dict[str, Tensor]]:
        """(B, F, H, W, 3) uint8 -> per item the tensors that the head of this file lists."""
        if self._options.one_frame:
            found = self._one_frame(pixels)
        else:
            found = self._clip_with_conditions(pixels)
        return [
            {name: self._as_stored(name, tensor[item]) for name, tensor in found.items()}
            for item in range(len(pixels.frames))
        ]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, f, h, w) as the network sees them -> (B, F, H, W, 3) uint8."""
        return self._vae.decode(latents)

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        dtype = self._stored if name.startswith("latents") else tensor.dtype
        return tensor.to("cpu", dtype).clone()

    def _clip_with_conditions(self, pixels: Pixels) -> dict[str, Tensor]:
        """Tensors by name, each with the batch axis B in front."""
        wants = self._wants
        frames = self.signed(pixels.frames)
        count = frames.shape[2]
        known = [0, -1] if wants.end else [0]
        if wants.end and count == 1:
            raise ConfigError(
                f"--task {self._options.task} learns clips between a first and a last frame, and an item is "
                "a single picture. Give videos, or train pictures with --one_frame."
            )
        found = {"latents": self.latents_of(frames)}
        if wants.start:
            found["latents_image"] = self.known_frames(frames, known)
        if self._look is not None:
            found["clip"] = self.views(frames, known if wants.end else [0])
        if wants.control and (any(pixels.controls) or self._options.task is not None):
            found["latents_control"] = self.latents_of(self.signed(_control_clips(pixels)))
        return found

    def latents_of(self, frames: Tensor) -> Tensor:
        """(B, 3, F, H, W) in -1..1 -> (B, C, f, h, w)."""
        return self._vae.encode(frames)

    def known_frames(self, frames: Tensor, known: Sequence[int]) -> Tensor:
        """(B, 3, F, H, W) in -1..1 -> (B, 4 + C, f, h, w): the mask, and a clip with all others grey."""
        shown = self._vae.encode(with_unknown_frames(frames, known))
        mask = frame_mask(frames.shape[2], known, height=shown.shape[3], width=shown.shape[4])
        return _masked(mask.expand(len(shown), -1, -1, -1, -1), shown)

    @property
    def sees(self) -> bool:
        """Whether there is a CLIP for `views`."""
        return self._look is not None

    def views(self, frames: Tensor, known: Sequence[int]) -> Tensor:
        """(B, 3, F, H, W) in -1..1 -> (B, P, D) of one frame, (B, n, P, D) of several."""
        assert self._look is not None  # by `sees`
        views = torch.stack([self._look(frames[:, :, index]) for index in known], dim=1)
        return views if len(known) > 1 else views[:, 0]

    def _one_frame(self, pixels: Pixels) -> dict[str, Tensor]:
        """Controls and target as frames of one latent, in the order of their times, each encoded alone."""
        order = frame_order(pixels)
        controls = [self.signed(control) for control in _control_pictures(pixels)]
        clean = [self.latents_of(picture) for picture in controls]
        target = self.latents_of(self.signed(pixels.frames))
        latents = torch.cat([target if slot is None else clean[slot] for slot in order.slots], dim=2)
        return {"latents": latents, **self.in_order(order, controls, clean)}

    def in_order(
        self, order: FrameOrder, controls: Sequence[Tensor], clean: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """What the network is shown of control pictures: all but the target, in the order of their times.

        controls: each (B, 3, 1, H, W) in -1..1. clean: their latents, each (B, C, 1, h, w).
        """
        grey = self.latents_of(torch.zeros_like(controls[0][:1])).expand_as(clean[0])
        shown = [grey if slot is None else clean[slot] for slot in order.slots]
        known = torch.tensor([float(slot is not None) for slot in order.slots])
        mask = known.view(1, 1, -1, 1, 1).expand(len(clean[0]), 4, -1, *clean[0].shape[3:])
        indices = torch.tensor(order.indices, dtype=torch.int32)
        found = {
            "latents_image": _masked(mask, torch.cat(shown, dim=2)),
            "f_indices": indices.expand(len(clean[0]), -1),
        }
        if self._look is not None:
            views = [self._look(controls[slot][:, :, 0]) for slot in order.slots if slot is not None]
            found["clip"] = torch.stack(views, dim=1)
        return found

    def signed(self, frames: Tensor) -> Tensor:
        """(B, F, H, W, 3 or 4) uint8 -> (B, 3, F, H, W) in -1..1; transparency is not encoded."""
        return to_signed(frames[..., :3], device=self._vae.device, dtype=torch.float32)


def _masked(mask: Tensor, image: Tensor) -> Tensor:
    """mask: (B, 4, f, h, w), image: (B, C, f, h, w) -> (B, 4 + C, f, h, w), the mask first."""
    return torch.cat([mask.to(image), image], dim=1)


def _control_clips(pixels: Pixels) -> Tensor:
    """(B, F, H, W, 3) uint8. Raises ConfigError unless each item has one, of its own size and length."""
    counts = {len(own) for own in pixels.controls} or {0}
    if counts != {1}:
        raise ConfigError(
            f"An item has {max(counts - {1}, default=0)} control clips; Fun-Control takes one per clip. Set "
            "control_directory, or control_path in each line of the JSONL file."
        )
    return _same_size([own[0] for own in pixels.controls], pixels.frames)


def _control_pictures(pixels: Pixels) -> list[Tensor]:
    """By control, (B, 1, H, W, 3) uint8."""
    return [_same_size(own, pixels.frames) for own in zip(*pixels.controls, strict=True)]


def _same_size(controls: Sequence[Tensor], frames: Tensor) -> Tensor:
    wanted = frames.shape[1:4]
    for control in controls:
        if control.shape[:3] != wanted:
            raise ConfigError(
                f"A control of {_words(control.shape)} belongs to an item of {_words(wanted)}; for Wan they "
                "must be equal. Remove no_resize_control and control_resolution from the dataset."
            )
    return torch.stack([control[..., :3] for control in controls])


def _words(shape: Sequence[int]) -> str:
    return f"{shape[0]} frames, {shape[2]}x{shape[1]}"


def _check_kind(kind: VaeKind, options: LatentOptions, path: Path) -> None:
    """Raises ConfigError when VAE and options do not belong together."""
    given: Mapping[str, bool] = {
        "i2v": options.i2v,
        "clip": options.clip is not None,
        "one_frame": options.one_frame,
    }
    extra = next((name for name, on in given.items() if on), None)
    if kind is WAN22 and extra is not None:
        raise ConfigError(
            f"--{extra} was given with the {kind.name} VAE ({path}). TI2V-5B takes its start picture from "
            f"the first frame of the latents, so there is nothing more to cache. Remove --{extra}."
        )
    wanted = WAN22 if options.conditions.small_latents else WAN21
    if kind is wanted:
        return
    if options.task is None:
        raise ConfigError(
            f"{path} is the {kind.name} VAE, whose latents and clips have other sizes. Add --task ti2v-5B, "
            "also when caching text."
        )
    raise ConfigError(
        f"{path} is the {kind.name} VAE, but --task {options.task} works on latents of the {wanted.name} "
        f"VAE. Set --vae to {wanted.files}."
    )
