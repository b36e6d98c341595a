"""The gradients of all trained parameters, side by side in one buffer.

Clearing, exchanging, measuring and clipping them are then one operation each, however many parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

ALIGNED = 16  # numbers; keeps every view on a 64-byte boundary for vector instructions


class FlatGradients:
    """Every parameter's `grad` is a view into `values`. `loss` travels at the end, to be summed with them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        first = self.parameters[0]
        sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in self.parameters]
        self.buffer = torch.zeros(sum(sizes) + 1, dtype=first.dtype, device=first.device)
        self.values, self.loss = self.buffer[:-1], self.buffer[-1]
        self._views = [
            part[: parameter.numel()].view_as(parameter)
            for part, parameter in zip(self.values.split(sizes), self.parameters, strict=True)
        ]
        self.clear()

    def clear(self) -> None:
        """All zero, and attached again where an optimizer let go of them."""
        self.buffer.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is not view:
                parameter.grad = view

    def loss_and_norm(self) -> tuple[float, float]:
        """The summed loss and the length of the whole gradient. Waits for the device once."""
        loss, norm = torch.stack([self.loss, torch.linalg.vector_norm(self.values)]).tolist()
        return loss, norm

    def clip(self, norm: float, limit: float) -> None:
        """Shorten the gradient to `limit` when its length `norm` exceeds it. limit 0: never."""
        if limit and norm > limit:
            self.values.mul_(limit / (norm + 1e-6))

    def scale(self, factor: float) -> None:
        self.values.mul_(factor)

    def detach(self) -> None:
        """Let go of the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
