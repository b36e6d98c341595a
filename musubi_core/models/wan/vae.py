"""The VAEs of Wan 2.1 and of Wan 2.2 TI2V-5B: opened from any of their published files.

Legend: B items, F pixel frames (4k + 1), H x W pixels, f = k + 1 latent frames, h x w latents, C channels.
Clips are worked through in chunks of 1, 4, 4, ... frames, which diffusers does by itself; it is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musubi_core.encoders.empty import empty
from musubi_core.encoders.feature_cache import HostCached
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.pixels import to_bytes
from musubi_core.encoders.precision import dtype_name
from musubi_core.errors import BadFileError, ConfigError, MissingLibraryError, MusubiError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.wan.vae_config import TEMPORAL, WAN21, WAN22, VaeKind
from musubi_core.models.wan.vae_keys import vae_names

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_WIDTH, _DECODER_WIDTH = "encoder.conv_in.weight", "decoder.conv_in.weight"
_LATENT = "post_quant_conv.weight"
_DECODER_MULTIPLE = 4  # the decoder begins with levels of four times its base width


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeLayout:
    """What a file holds. names: diffusers' name -> name in the file."""

    kind: VaeKind
    width: int
    decoder_width: int
    names: Mapping[str, str]


class WanVae:
    """An opened VAE. Its latents are normalised, as the network sees them."""

    def __init__(self, vae: AutoencoderKLWan, kind: VaeKind) -> None:
        self.kind = kind
        self._vae = vae
        weight = next(vae.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        statistics = torch.tensor([kind.mean, kind.std], device=self.device).view(2, 1, -1, 1, 1, 1)
        self._mean, self._std = statistics  # each (1, C, 1, 1, 1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, F, H, W) in -1..1 -> (B, C, f, h, w) float32: the posterior's mode, never a sample."""
        _check_size(x, self.kind)
        mode = self._vae.encode(x.to(self.device, self.dtype)).latent_dist.mode()
        latents: Tensor = (mode.float() - self._mean) / self._std
        if not torch.isfinite(latents).all():
            raise MusubiError(
                f"The VAE gave numbers that are not finite in {dtype_name(self.dtype)}, for pixels of shape "
                f"{list(x.shape)}. They were not cached. Try --vae_dtype bf16 or fp32."
            )
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, f, h, w) as the network sees them -> (B, F, H, W, 3) uint8."""
        z = latents.to(self.device, torch.float32) * self._std + self._mean
        return to_bytes(self._vae.decode(z.to(self.dtype), return_dict=False)[0])


def read_layout(path: Path) -> VaeLayout:
    """Which VAE a file holds. Reads its header only. Raises BadFileError if it is something else."""
    with open_checkpoint(path) as checkpoint:
        return _layout(checkpoint)


def open_vae(path: Path, *, device: torch.device, dtype: torch.dtype, cache_cpu: bool = False) -> WanVae:
    """The VAE in a file of original or diffusers naming, ready to encode and decode.

    dtype: of weights and calculation. cache_cpu: what convolutions remember between chunks waits in host
    memory; the result is the same.
    """
    with open_checkpoint(path) as checkpoint:
        layout = _layout(checkpoint)
        vae = _empty_vae(layout)
        shapes = {name: tensor.shape for name, tensor in vae.state_dict().items()}
        stored = {name: checkpoint.header[source] for name, source in layout.names.items()}
        check_names(shapes, stored, path=path, what=f"{layout.kind.name} VAE")
        fill(vae, checkpoint, layout.names, device=device, dtype_of=lambda name: dtype)
    if cache_cpu:
        vae.encoder, vae.decoder = HostCached(vae.encoder), HostCached(vae.decoder)
    return WanVae(vae, layout.kind)


def math_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What the VAE calculates in: float32 on a CPU, which is slow and coarse in half precision."""
    return torch.float32 if device.type == "cpu" else stored


def _check_size(x: Tensor, kind: VaeKind) -> None:
    count, height, width = x.shape[2:]
    if height % kind.spatial or width % kind.spatial or (count - 1) % TEMPORAL:
        raise ConfigError(
            f"{count} frames of {width}x{height} cannot be encoded by the {kind.name} VAE: width and height "
            f"must be multiples of {kind.spatial}, and the frames one more than a multiple of {TEMPORAL}."
        )


def _layout(checkpoint: Checkpoint) -> VaeLayout:
    names = vae_names(checkpoint.header)
    if names is None:
        first = ", ".join(list(checkpoint.header)[:3]) or "none"
        raise _not_ours(
            checkpoint.path, f"none of its {len(checkpoint.header)} tensors is a block of it (first: {first})"
        )
    kind = WAN22 if names.grouped else WAN21
    header = {own: checkpoint.header[source] for own, source in names.sources.items()}
    return _sizes(header, kind, names.sources, checkpoint.path)


def _sizes(
    header: Mapping[str, TensorInfo], kind: VaeKind, names: Mapping[str, str], path: Path
) -> VaeLayout:
    try:
        first, decoder, latent = (header[name].shape for name in (_WIDTH, _DECODER_WIDTH, _LATENT))
    except KeyError as error:
        raise _not_ours(path, f"it lacks {error}") from None
    if first[1:2] != (kind.colours,) or latent[:1] != (kind.channels,):
        raise _not_ours(
            path,
            f"its first convolution has shape {list(first)} and its latents {latent[0]} channels; the "
            f"{kind.name} VAE takes {kind.colours} channels in and makes {kind.channels}",
        )
    return VaeLayout(kind=kind, width=first[0], decoder_width=decoder[0] // _DECODER_MULTIPLE, names=names)


def _not_ours(path: Path, reason: str) -> BadFileError:
    return BadFileError(
        f"{path} is not a Wan VAE: {reason}. Expected {WAN21.files}; for TI2V-5B {WAN22.files}."
    )


def _empty_vae(layout: VaeLayout) -> AutoencoderKLWan:
    arguments: Mapping[str, Any] = layout.kind.arguments(layout.width, layout.decoder_width)

    def build() -> AutoencoderKLWan:
        from diffusers import AutoencoderKLWan

        return AutoencoderKLWan(**arguments)

    try:
        return empty(build)
    except (ImportError, TypeError):
        import diffusers

        raise MissingLibraryError(
            f"diffusers {diffusers.__version__} has no {layout.kind.name} VAE. Install 0.35 or newer: "
            "pip install -U diffusers"
        ) from None
