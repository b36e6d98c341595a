"""Loading the network from a released file: tensor by tensor, so that the file is never held twice."""

from __future__ import annotations

from pathlib import Path

import torch

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.loading import check_names, fill
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.detect import detect, refuse
from musubi_core.models.hunyuan_video.keys import stored_names
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.spec import LoadRequest


def load(request: LoadRequest) -> HunyuanVideo:
    """The frozen network of a file in original or ComfyUI naming; float8 weights become the asked dtype.

    Raises BadFileError for another kind of file or one that is not complete, ConfigError if the file does not
    fit `dit_in_channels`.
    """
    options = request.options or TrainOptions()
    options.check()
    dtype = dtype_of(options.dit_dtype) if options.dit_dtype else request.dtype
    with open_checkpoint(request.path) as checkpoint:
        found = detect(checkpoint.header)
        if found is None:
            raise BadFileError(f"{request.path} is not a HunyuanVideo network: {refuse(checkpoint.header)}")
        _check_channels(found.config, options, request.path)
        with torch.device("meta"):
            network = HunyuanVideo(
                found.config,
                attention=request.attention,
                split_attention=request.split_attention,
                checkpointing=request.checkpointing,
            )
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sources = stored_names(shapes, naming=found.naming, prefix=found.prefix)
        held = {name for name in without_helpers(checkpoint.header) if name.startswith(found.prefix)}
        check_names(
            {sources[name]: shape for name, shape in shapes.items()},
            {name: info for name, info in checkpoint.header.items() if name in held},
            path=request.path,
            what="HunyuanVideo network",
        )
        fill(
            network,
            checkpoint,
            sources,
            device=request.device,
            dtype_of=lambda name: dtype,
            transform=request.transform,
            quantisation=request.quantisation,
            placement=request.placement,
        )
    return network


def _check_channels(config: HunyuanVideoConfig, options: TrainOptions, path: Path) -> None:
    if config.in_channels == options.dit_in_channels:
        return
    if config.in_channels == 33:
        raise BadFileError(
            f"{path} is HunyuanVideo's first image-to-video network (33 input channels), which cannot be "
            "trained here. Use the text-to-video network, or SkyReels image-to-video (32 input channels)."
        )
    raise ConfigError(
        f"{path} has {config.in_channels} input channels, but dit_in_channels is {options.dit_in_channels}. "
        f"Set --dit_in_channels {config.in_channels}."
    )
