"""Options of the two caching jobs. Imports no torch: the command line builds its flags from these classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

_DATASET = "Dataset file (.toml or .json) that lists folders of pictures and clips, captions and resolutions."
_ARCHITECTURE = "Model family to cache for. Only needed when the program knows more than one."
_DEVICE = "Where the encoder runs, e.g. cuda, cuda:1 or cpu. Default: the GPU when there is one."
_SKIP = (
    "Files made by musubi-tuner are meant to be kept: accept those that fit without a warning. "
    "Files made by this program are always checked against picture, caption, encoder and settings, "
    "and kept when nothing changed."
)
_KEEP = "Delete nothing: cache files of pictures and clips that left the dataset stay on disk, unused."


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLatentsConfig:
    """How pictures and clips are turned into latents on disk."""

    dataset_config: Path = option(help=_DATASET)
    architecture: str | None = option(None, help=_ARCHITECTURE)
    vae: Path | None = option(None, help="File of the VAE that encodes pictures and clips.")
    vae_dtype: str | None = option(
        None,
        help="Number format the VAE computes in. Default: the architecture's own choice.",
        choices=("float16", "bfloat16", "float32", "fp16", "bf16", "fp32"),
    )
    device: str | None = option(None, help=_DEVICE)
    batch_size: int | None = option(
        None, ge=1, help="Pictures or clips of one size encoded together. Default: the dataset's batch_size."
    )
    num_workers: int | None = option(
        None, ge=1, help="Threads that read and decode media ahead of the VAE. Default: CPU cores - 1."
    )
    skip_existing: bool = option(False, help=_SKIP)
    keep_cache: bool = option(False, help=_KEEP)
    debug_mode: str | None = option(
        None,
        choices=("image", "console", "video"),
        help="Show what would be cached instead of caching: contact sheets (image), pictures made of "
        "characters (console), or each sample as a file (video).",
    )
    console_width: int = option(80, ge=1, help="Width in characters of the pictures of debug_mode console.")
    console_back: str | None = option(
        None, help="Background colour of debug_mode console, as a colour name or escape sequence."
    )
    console_num_images: int | None = option(
        None, ge=1, help="How many items debug_mode shows of each dataset. Default: all."
    )
    disable_cudnn_backend: bool = option(
        False, advanced=True, help="Switch cuDNN off, for cards on which it fails in the VAE."
    )
    arch_options: object = None  # an instance of the architecture's latent_options; None means its defaults

    def check(self) -> None:
        if self.vae is None and self.debug_mode is None:
            raise ConfigError(
                "--vae is missing. Give the VAE file, or --debug_mode to only look at the dataset."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTextConfig:
    """How captions are turned into text encoder outputs on disk."""

    dataset_config: Path = option(help=_DATASET)
    architecture: str | None = option(None, help=_ARCHITECTURE)
    device: str | None = option(None, help=_DEVICE)
    batch_size: int = option(
        1, ge=1, help="Captions encoded together, whatever the batch_size of the dataset is. 16 suits 24 GB."
    )
    num_workers: int | None = option(
        None,
        ge=1,
        advanced=True,
        help="Accepted for musubi-tuner's command lines and without effect: captions need no threads.",
    )
    skip_existing: bool = option(False, help=_SKIP)
    keep_cache: bool = option(False, help=_KEEP)
    arch_options: object = None  # an instance of the architecture's text_options; None means its defaults
