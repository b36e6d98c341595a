"""The VAE (AE): opened from any of its published files, latents in musubi-tuner's form.

Legend: B items, H x W pixels, h x w = H/8 x W/8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.pixels import to_bytes, to_signed
from musubi_core.encoders.posterior import draw
from musubi_core.encoders.precision import dtype_name, math_dtype
from musubi_core.encoders.vae_keys import BLOCKS, sources
from musubi_core.errors import BadFileError, ConfigError, MusubiError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.digest import weights_identity
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.flux_kontext.inputs import control_name
from musubi_core.models.spec import EncoderRequest, LatentEncoding, Pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CHANNELS, SPATIAL = 16, 8
SHIFT, SCALE = 0.1159, 0.3611  # what the network sees is (latent - SHIFT) * SCALE
WANTED = (
    "the VAE of FLUX.1: ae.safetensors (black-forest-labs/FLUX.1-Kontext-dev or "
    "Comfy-Org/Lumina_Image_2.0_Repackaged), or the folder vae of the diffusers repository"
)


def latents(request: EncoderRequest) -> LatentEncoding:
    """How to make latents with the VAE in `request.weights`. Reads the file's header, not its weights.

    `request.dtype` is what the VAE computes in. Latents are float32 in any case, as musubi-tuner caches them.
    """
    if request.weights is None:
        raise ConfigError(f"The VAE was not given. Set --vae to {WANTED}.")
    path = request.weights
    with open_checkpoint(path) as checkpoint:
        _layout(checkpoint)  # refuses a foreign file before any media is read
    math = math_dtype(request.dtype or torch.float32, request.device)
    settings = {
        "posterior": "sample",
        "control_posterior": "mode",
        "scaled": True,
        "dtype": "float32",
        "math": dtype_name(math),
    }

    def open_codec() -> VaeCodec:
        return VaeCodec(open_vae(path, device=request.device, dtype=math))

    return LatentEncoding(identity=weights_identity(path), settings=settings, open=open_codec)


def open_vae(path: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE in a file of original or diffusers naming, also prefixed, ready to encode and decode."""
    with open_checkpoint(path) as checkpoint:
        config, names = _layout(checkpoint)
        vae = _empty_vae(config)
        shapes = {name: tensor.shape for name, tensor in vae.state_dict().items()}
        stored = {name: checkpoint.header[source] for name, source in names.items()}
        check_names(shapes, stored, path=path, what="FLUX.1 VAE", unit_axes=True)
        fill(vae, checkpoint, names, device=device, dtype_of=lambda name: dtype)
    return vae


class VaeCodec:
    """An opened VAE, see `LatentCodec`."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> list[dict[str, Tensor]]:
        """(B, 1, H, W, 3) uint8 with one or more control pictures per item -> per item `latents` (16, h, w)
        and `latents_control` (16, h', w'), for further controls `latents_control_1`, ...; float32, scaled.

        The target is a posterior sample, so that a run sees the spread the VAE was trained with; a control
        is the posterior's mode, as it is at inference.
        """
        _check_pictures(pixels)
        posterior = self._posterior(pixels.frames)
        controls = [list(pictures) for pictures in zip(*pixels.controls, strict=True)]
        scaled = {"latents": self._scaled(draw(posterior.mean, posterior.std, pixels.seeds), "latents")}
        scaled |= self.encode_controls(controls)
        return [
            {name: tensor[item].clone() for name, tensor in scaled.items()}
            for item in range(len(pixels.frames))
        ]

    @torch.no_grad()
    def encode_controls(self, controls: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """By control, by item (1, H, W, 3 or 4) uint8 -> `latents_control` (B, 16, h, w) and further ones."""
        found = {}
        for index, pictures in enumerate(controls):
            colours = torch.stack([picture[..., :3] for picture in pictures])  # transparency is not encoded
            name = control_name(index)
            found[name] = self._scaled(self._posterior(colours).mode().float().cpu(), name)
        return found

    def _scaled(self, latents: Tensor, name: str) -> Tensor:
        """As the network sees them. Raises MusubiError for numbers that are not finite."""
        if not torch.isfinite(latents).all():
            raise MusubiError(
                f"The VAE gave numbers that are not finite in {dtype_name(self._vae.dtype)}, for {name} of "
                f"shape {list(latents.shape)}. They were not cached. Try --vae_dtype bf16 or fp32."
            )
        return (latents - SHIFT) * SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) as the network sees them -> (B, 1, H, W, 3) uint8."""
        z = (latents.to(self._vae.device, torch.float32) / SCALE + SHIFT).to(self._vae.dtype)
        return to_bytes(self._vae.decode(z, return_dict=False)[0].unsqueeze(2))

    def _posterior(self, pictures: Tensor) -> Any:
        """(B, 1, H, W, 3) uint8 -> diffusers' distribution of latents (B, 16, h, w)."""
        x = to_signed(pictures, device=self._vae.device, dtype=self._vae.dtype)
        return self._vae.encode(x.squeeze(2)).latent_dist


def _check_pictures(pixels: Pixels) -> None:
    """Raises ConfigError for what cannot be encoded."""
    count, channels = pixels.frames.shape[1], pixels.frames.shape[-1]
    if count != 1 or channels != 3:
        raise ConfigError(
            f"An item has {count} pictures of {channels} channels; FLUX.1 Kontext learns one target picture "
            "per item. Set multiple_target = false."
        )
    if len(pixels.controls) != len(pixels.frames) or not all(pixels.controls):
        raise ConfigError(
            "FLUX.1 Kontext learns edits: each picture needs a control picture, the one before the edit. Set "
            "control_directory, or control_path in each line of the JSONL file."
        )
    shapes = [pixels.frames.shape[2:4], *(one.shape[1:3] for own in pixels.controls for one in own)]
    for height, width in shapes:
        _check_size(height, width)


def _check_size(height: int, width: int) -> None:
    if height % SPATIAL or width % SPATIAL:
        raise ConfigError(
            f"A picture of {width}x{height} cannot be encoded: width and height must be multiples of "
            f"{SPATIAL}."
        )


def _layout(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, str]]:
    """What the header says: arguments of the class, and for each of its names the name in the file.

    Raises BadFileError if the file is something else.
    """
    names = sources(checkpoint.header)
    if names is None:
        raise _not_ours(checkpoint.path, _first(list(checkpoint.header)))
    return _sizes({own: checkpoint.header[name] for own, name in names.items()}, checkpoint.path), names


def _sizes(header: Mapping[str, TensorInfo], path: Path) -> dict[str, Any]:
    """Arguments of diffusers' class. Raises BadFileError for a VAE of another kind."""
    try:
        widths = [
            header[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(BLOCKS)
        ]
        first = header["encoder.conv_in.weight"].shape
        latent = header["decoder.conv_in.weight"].shape
    except KeyError as error:
        raise _not_ours(path, f"it lacks {error}") from None
    if len(first) != 4 or first[1] != 3 or len(latent) != 4 or any(width % 32 for width in widths):
        raise _not_ours(
            path,
            f"its first convolution has shape {list(first)} and its levels are {widths} wide; expected 2-D "
            "convolutions of 3 colours and widths in multiples of 32",
        )
    if latent[1] != CHANNELS or "quant_conv.weight" in header:
        raise _not_ours(
            path,
            f"it makes latents of {latent[1]} channels with{'' if 'quant_conv.weight' in header else 'out'} "
            f"quant_conv, as the VAEs of other models do; expected {CHANNELS} channels without it",
        )
    resnet = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    layers = {found.group(1) for name in header if (found := resnet.match(name))}
    return {
        "latent_channels": latent[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(layers),
        "down_block_types": ("DownEncoderBlock2D",) * BLOCKS,
        "up_block_types": ("UpDecoderBlock2D",) * BLOCKS,
        "norm_num_groups": 32,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def _first(names: Sequence[str]) -> str:
    return f"none of its {len(names)} tensors is an encoder block (first: {', '.join(names[:3]) or 'none'})"


def _not_ours(path: Path, reason: str) -> BadFileError:
    return BadFileError(f"{path} is not the VAE of FLUX.1: {reason}. Expected {WANTED}.")


def _empty_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    def build() -> AutoencoderKL:
        from diffusers import AutoencoderKL

        return AutoencoderKL(**config)

    return empty(build)
