"""The gradients of all trained parameters, side by side in one buffer.

Clearing, exchanging, measuring and clipping them are then one operation each, however many parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

ALIGNED = 16  # numbers; keeps every view on a 64-byte boundary for vector instructions


class FlatGradients:
    """Every parameter's `grad` is a view into `values`. `loss` travels at the end, to be summed with them.

    So does `used`, where the parameters come in several parts: how many batches were for each part.
    """

    def __init__(self, *parts: Sequence[nn.Parameter]) -> None:
        self.parts = tuple(map(tuple, parts))
        self.parameters = tuple(parameter for part in self.parts for parameter in part)
        first = self.parameters[0]
        sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in self.parameters]
        total, extra = sum(sizes), len(parts) if len(parts) > 1 else 0
        self.buffer = torch.zeros(total + 1 + extra, dtype=first.dtype, device=first.device)
        self.values, self.loss, self.used = self.buffer[:total], self.buffer[total], self.buffer[total + 1 :]
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

    def count(self, part: int) -> None:
        """A batch was for this part."""
        if len(self.parts) > 1:
            self.used[part] += 1

    def leave_unused(self) -> None:
        """Let go of the parts that no batch was for, so that the optimizer passes them over.

        To it, a gradient of zero is a step like any other.
        """
        if len(self.parts) > 1:
            for part, used in zip(self.parts, self.used.tolist(), strict=True):
                if not used:
                    _let_go(part)

    def scale(self, factor: float) -> None:
        self.values.mul_(factor)

    def detach(self) -> None:
        """Let go of the parameters."""
        _let_go(self.parameters)


def _let_go(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
