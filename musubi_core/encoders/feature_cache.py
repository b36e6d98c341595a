"""What the causal convolutions of a video VAE remember from chunk to chunk, kept in host memory.

A video VAE that works through a clip a few frames at a time gives each convolution the last frames of the
chunk before. At 720p these remembered frames take gigabytes; here they wait in host memory, and each comes to
the device when its convolution runs. Nothing is calculated differently.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


class HostFeatures:
    """A list of remembered features as the model sees it: set on the device, kept on the host, read back.

    kept: the model's own list; entries that are no tensors (None, marks) pass through.
    """

    def __init__(self, kept: MutableSequence[Any], device: torch.device) -> None:
        self._kept = kept
        self._device = device

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Any:
        value = self._kept[index]
        return value.to(self._device) if isinstance(value, Tensor) else value

    def __setitem__(self, index: int, value: Any) -> None:
        self._kept[index] = value.to(HOST) if isinstance(value, Tensor) else value


class HostCached(nn.Module):
    """An encoder or decoder that is called with `feat_cache`, a list of features, which stays on the host."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, *, feat_cache: MutableSequence[Any] | None = None, **others: Any) -> Tensor:
        """x: one chunk of frames, (B, C, T, H, W)."""
        if feat_cache is not None:
            others["feat_cache"] = HostFeatures(feat_cache, x.device)
        result: Tensor = self.model(x, **others)
        return result
