"""Loading the network from a released file."""

from __future__ import annotations

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.models.hunyuan_video.detect import detect, refuse
from musubi_core.models.hunyuan_video.keys import stored_names
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.hunyuan_video.options import TrainOptions
from musubi_core.models.loading import NetworkFile, load_network
from musubi_core.models.spec import Detected, LoadRequest


def load(request: LoadRequest) -> HunyuanVideo:
    """The frozen network of a file in original or ComfyUI naming; float8 weights become the asked dtype.

    Raises BadFileError for another kind of file or one that is not complete, ConfigError if the file does not
    fit `dit_in_channels`.
    """
    options = request.options or TrainOptions()
    options.check()
    return load_network(request, FILE, dtype=options.dit_dtype or "")


def _check_channels(found: Detected, request: LoadRequest) -> None:
    expected = (request.options or TrainOptions()).dit_in_channels
    channels = found.config.in_channels
    if channels == expected:
        return
    if channels == 33:
        raise BadFileError(
            f"{request.path} is HunyuanVideo's first image-to-video network (33 input channels), which "
            "cannot be trained here. Use the text-to-video network, or SkyReels image-to-video (32 channels)."
        )
    raise ConfigError(
        f"{request.path} has {channels} input channels, but dit_in_channels is {expected}. "
        f"Set --dit_in_channels {channels}."
    )


FILE = NetworkFile(
    what="HunyuanVideo network",
    detect=detect,
    refuse=refuse,
    stored_names=lambda names, found: stored_names(names, naming=found.naming, prefix=found.prefix),
    network=HunyuanVideo,
    check=_check_channels,
)
