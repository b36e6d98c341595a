"""The VAE: opened from any of its published files, latents in musubi-tuner's form.

Legend: B items, F pixel frames (4k + 1), H x W pixels, f = k + 1 latent frames, h x w = H/8 x W/8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.pixels import to_bytes, to_signed
from musubi_core.encoders.posterior import draw
from musubi_core.encoders.precision import dtype_name, math_dtype
from musubi_core.encoders.time_chunks import chunk_convolutions
from musubi_core.encoders.vae_keys import BLOCKS, sources
from musubi_core.errors import BadFileError, ConfigError, MusubiError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.digest import weights_identity
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.hunyuan_video.inputs import LATENT_SCALE
from musubi_core.models.hunyuan_video.options import LatentOptions
from musubi_core.models.spec import EncoderRequest, LatentEncoding, Pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo

SPATIAL, TEMPORAL = 8, 4
WANTED = (
    "the HunyuanVideo VAE: hunyuan_video_vae_bf16.safetensors (Kijai/HunyuanVideo_comfy or "
    "Comfy-Org/HunyuanVideo_repackaged) or hunyuan-video-t2v-720p/vae/pytorch_model.pt (tencent/HunyuanVideo)"
)


def latents(request: EncoderRequest) -> LatentEncoding:
    """How to make latents with the VAE in `request.weights`. Reads the file's header, not its weights."""
    options: LatentOptions = request.options or LatentOptions()
    options.check()
    if request.weights is None:
        raise ConfigError(f"The VAE was not given. Set --vae to {WANTED}.")
    path = request.weights
    with open_checkpoint(path) as checkpoint:
        _layout(checkpoint)  # refuses a foreign file before any media is read
    stored = request.dtype or torch.float16
    settings = {
        "posterior": "sample",
        "scaled": False,  # the scaling is applied in training
        "dtype": dtype_name(stored),
        "math": dtype_name(math_dtype(stored, request.device)),
        "tile": options.tile_size,
    }

    def open_codec() -> VaeCodec:
        return VaeCodec(open_vae(path, device=request.device, dtype=stored, options=options), dtype=stored)

    return LatentEncoding(identity=weights_identity(path), settings=settings, open=open_codec)


def open_vae(
    path: Path, *, device: torch.device, dtype: torch.dtype, options: LatentOptions
) -> AutoencoderKLHunyuanVideo:
    """The VAE in a file of original or LDM naming, nested or prefixed, ready to encode and decode.

    Cutting clips in time, which diffusers does by default, is off: it changes the latents, and the released
    LoRAs were trained without it.
    """
    math = math_dtype(dtype, device)
    with open_checkpoint(path) as checkpoint:
        config, names = _layout(checkpoint)
        vae = _empty_vae(config)
        shapes = {name: tensor.shape for name, tensor in vae.state_dict().items()}
        stored = {name: checkpoint.header[source] for name, source in names.items()}
        check_names(shapes, stored, path=path, what="HunyuanVideo VAE", unit_axes=True)
        fill(vae, checkpoint, names, device=device, dtype_of=lambda name: math)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    tile = options.tile_size
    if tile is not None:
        vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=tile * 3 // 4,
            tile_sample_stride_width=tile * 3 // 4,
        )
    if options.vae_chunk_size is not None:
        chunk_convolutions(vae, options.vae_chunk_size)
    return vae


class VaeCodec:
    """An opened VAE, see `LatentCodec`."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, *, dtype: torch.dtype) -> None:
        self._vae = vae
        self._stored = dtype

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> list[dict[str, Tensor]]:
        """(B, F, H, W, 3) uint8 -> per item {"latents": (16, f, h, w)}: a posterior sample, not scaled."""
        _check_size(pixels.frames)
        weight = _a_weight(self._vae)
        x = to_signed(pixels.frames, device=weight.device, dtype=weight.dtype)
        posterior = self._vae.encode(x).latent_dist
        drawn = draw(posterior.mean, posterior.std, pixels.seeds)
        if not torch.isfinite(drawn).all():
            raise MusubiError(
                f"The VAE gave numbers that are not finite in {dtype_name(weight.dtype)}, for pixels of "
                f"shape {list(pixels.frames.shape)}. They were not cached. Try --vae_dtype bf16 or fp32."
            )
        return [{"latents": item} for item in drawn.to(self._stored)]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, f, h, w) as the network sees them, scaled -> (B, F, H, W, 3) uint8."""
        weight = _a_weight(self._vae)
        z = (latents.to(weight.device, torch.float32) / LATENT_SCALE).to(weight.dtype)
        return to_bytes(self._vae.decode(z, return_dict=False)[0])


def _a_weight(vae: nn.Module) -> Tensor:
    """Any weight: all have the same dtype and device."""
    return next(vae.parameters())


def _check_size(frames: Tensor) -> None:
    count, height, width = frames.shape[1:4]
    if height % SPATIAL or width % SPATIAL or (count - 1) % TEMPORAL:
        raise ConfigError(
            f"{count} frames of {width}x{height} cannot be encoded: width and height must be multiples of "
            f"{SPATIAL}, and the frames one more than a multiple of {TEMPORAL}."
        )


def _layout(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, str]]:
    """What the header says: arguments of the class, and for each of its names the name in the file.

    Raises BadFileError if the file is something else.
    """
    names = sources(checkpoint.header)
    if names is None:
        first = ", ".join(list(checkpoint.header)[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not the HunyuanVideo VAE: none of its {len(checkpoint.header)} tensors is "
            f"an encoder block of it (first: {first}). Expected {WANTED}."
        )
    return _sizes({own: checkpoint.header[name] for own, name in names.items()}, checkpoint.path), names


def _sizes(header: Mapping[str, TensorInfo], path: Path) -> dict[str, Any]:
    """Arguments of diffusers' class, read from the shapes. Only what can differ; the rest is its default."""
    try:
        blocks = [f"encoder.down_blocks.{number}.resnets.0.conv1.conv.weight" for number in range(BLOCKS)]
        widths = [header[name].shape[0] for name in blocks]
        first = header["encoder.conv_in.conv.weight"].shape
        latent = header["post_quant_conv.weight"].shape[0]
    except KeyError as error:
        raise BadFileError(
            f"{path} is not the HunyuanVideo VAE: it lacks {error}. Expected {WANTED}."
        ) from None
    resnet = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    layers = {found.group(1) for name in header if (found := resnet.match(name))}
    if len(first) != 5 or first[1] != 3 or any(width % 32 for width in widths):
        raise BadFileError(
            f"{path} is not the HunyuanVideo VAE: its first convolution has shape {list(first)} and its "
            f"levels are {widths} wide. Expected 3-D convolutions of 3 colours and widths in multiples of 32."
        )
    return {
        "latent_channels": latent,
        "block_out_channels": tuple(widths),
        "layers_per_block": len(layers),
        "norm_num_groups": 32,
        "scaling_factor": LATENT_SCALE,
    }


def _empty_vae(config: Mapping[str, Any]) -> AutoencoderKLHunyuanVideo:
    def build() -> AutoencoderKLHunyuanVideo:
        from diffusers import AutoencoderKLHunyuanVideo

        return AutoencoderKLHunyuanVideo(**config)

    return empty(build)
