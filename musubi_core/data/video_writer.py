"""Frames to an MP4 file."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

BITS_PER_SECOND = 1_000_000  # enough to look at a dataset
FINE_BITS_PER_PIXEL = 0.5  # for codecs without a scale of quality
CRF = "16"  # x264's scale of quality: no difference to be seen
CODECS = ("libx264", "mpeg4")  # the second is in every build of FFmpeg


def write_mp4(
    file: BinaryIO,
    frames: NDArray[np.uint8],
    fps: float,
    *,
    fine: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """frames: (F, H, W, 3) uint8, H and W even. `file` must be seekable.

    fine: as good as the eye can tell, instead of small. metadata: "title" and "comment" are what MP4 keeps.
    """
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    with av.open(file, "w", format="mp4") as container:
        container.metadata.update(metadata or {})
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if fine and codec == CODECS[0]:
            stream.options = {"crf": CRF}
        else:
            area = stream.height * stream.width
            stream.bit_rate = int(FINE_BITS_PER_PIXEL * area * rate) if fine else BITS_PER_SECOND
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
