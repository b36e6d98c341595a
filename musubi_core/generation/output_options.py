"""What is written, and where. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

OUTPUT_TYPES = ("video", "images", "latent", "both", "latent_images")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Files of a drawing: a clip as MP4, a picture as PNG, latents as safetensors."""

    save_path: Path | None = option(
        None, help="Folder for what is drawn. Files are named by date, time and seed; none is overwritten."
    )
    output_type: str = option(
        "video",
        choices=OUTPUT_TYPES,
        help="video: an MP4, or a PNG when there is one frame. images: every frame as a PNG. latent: "
        "undecoded. both: video and latent. latent_images: images and latent.",
    )
    latent_path: tuple[Path, ...] = option(
        (), help="Decode these files of --output_type latent, and draw nothing."
    )
    fps: float | None = option(
        None, ge=0.1, le=1000.0, help="Frames per second of the MP4. Default: those of the model."
    )
    no_metadata: bool = option(
        False, help="Do not write prompt and settings into the files. Latents then need --architecture."
    )
    preview_latent_every: int | None = option(
        None,
        ge=1,
        help="After every so many steps write a small preview, made without the VAE, to preview_latent.png "
        "(or .mp4) in save_path.",
        advanced=True,
    )

    @property
    def keeps_latents(self) -> bool:
        return self.output_type in ("latent", "both", "latent_images")

    @property
    def decodes(self) -> bool:
        return self.output_type != "latent"

    @property
    def as_images(self) -> bool:
        """Whether frames are written one by one."""
        return self.output_type in ("images", "latent_images")

    def check(self) -> None:
        """Raises ConfigError for latents that are not there."""
        for path in self.latent_path:
            if not path.is_file():
                raise ConfigError(f"--latent_path: {path} does not exist. Give the path of an existing file.")
