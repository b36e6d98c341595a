"""3-D convolutions that work on a few frames at a time: less memory, the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeChunkedConv3d(nn.Module):
    """A Conv3d without padding in time, calculated in pieces of at most `frames` output frames.

    Each output frame sees exactly the input frames it would see in one piece, so nothing is approximated.
    """

    def __init__(self, conv: nn.Conv3d, frames: int) -> None:
        super().__init__()
        if conv.padding[0] != 0 or conv.dilation[0] != 1:
            raise ValueError("only convolutions whose input is padded in time beforehand can be cut in time")
        self.conv = conv
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        total = (x.shape[2] - kernel) // stride + 1
        pieces = [
            self.conv(x[:, :, first * stride : (min(first + self.frames, total) - 1) * stride + kernel])
            for first in range(0, total, self.frames)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def chunk_convolutions(model: nn.Module, frames: int) -> None:
    """Put every Conv3d below `model` into a TimeChunkedConv3d, in place. Load the weights first."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and not isinstance(parent, TimeChunkedConv3d):
                setattr(parent, name, TimeChunkedConv3d(child, frames))
