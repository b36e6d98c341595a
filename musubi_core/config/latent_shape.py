"""What the data room must know of an architecture: the geometry of its latents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Strides and steps between pixels and latents.

    architecture, short: full name (metadata) and cache suffix. spatial, temporal: VAE strides; temporal 0
    means the architecture knows pictures only. pixel_step: width and height of a bucket are multiples of it.
    fps: the frame rate that clips are brought to. min_controls, max_controls: control images per item, None
    for "any number".
    """

    architecture: str
    short: str
    channels: int
    spatial: int
    temporal: int
    pixel_step: int
    fps: float
    min_controls: int = 0
    max_controls: int | None = 0

    def frames(self, pixel_frames: int) -> int:
        """Latent frames of a clip of `pixel_frames` frames (temporal * n + 1)."""
        return (pixel_frames - 1) // self.temporal + 1 if self.temporal else 1

    def size(self, width: int, height: int, pixel_frames: int = 1) -> tuple[int, int, int]:
        """(F, H, W) of the latent of a clip."""
        return self.frames(pixel_frames), height // self.spatial, width // self.spatial
