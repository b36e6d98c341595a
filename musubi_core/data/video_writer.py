"""Frames to an MP4 file."""

from __future__ import annotations

from fractions import Fraction
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

BITS_PER_SECOND = 1_000_000
CODECS = ("libx264", "mpeg4")  # the second is in every build of FFmpeg


def write_mp4(file: BinaryIO, frames: NDArray[np.uint8], fps: float) -> None:
    """frames: (F, H, W, 3) uint8, H and W even. `file` must be seekable."""
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = BITS_PER_SECOND
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
