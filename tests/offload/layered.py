"""A small network of equal blocks with gradient checkpointing, and adapters on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HIDDEN = 8


class Block(nn.Module):
    """Weights of every kind: matrices, vectors, a modulation with a leading 1, a buffer of two axes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 3 * hidden)
        self.down = nn.Linear(3 * hidden, hidden, bias=False)
        self.modulation = nn.Parameter(torch.randn(1, 2, hidden))
        self.register_buffer("table", torch.randn(hidden, hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, gate = self.modulation[:, 0], self.modulation[:, 1]
        inner = torch.tanh(self.up(self.norm(x) + shift + vec) + 0.1)
        return x + gate * self.down(inner) @ self.table


class Layered(nn.Module):
    """(B, L, hidden) -> the same."""

    def __init__(self, blocks: int = 5, hidden: int = HIDDEN, *, checkpointing: bool = True) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.inward = nn.Linear(hidden, hidden)
        self.blocks = nn.ModuleList(Block(hidden) for _ in range(blocks))
        self.outward = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        x = self.inward(x)
        for block in self.blocks:
            x = self._run(block, x, vec)
        return self.outward(x)

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def layered(blocks: int = 5, **how: Any) -> Layered:
    """The same random weights every time, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layered(blocks, **how).requires_grad_(False).eval()


def inputs(seed: int = 1, hidden: int = HIDDEN) -> tuple[Tensor, Tensor]:
    """x, which asks for a gradient, and vec."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, hidden, generator=generator)
    return x.requires_grad_(), torch.randn(2, 1, hidden, generator=generator)


def numbers(model: nn.Module, seed: int = 1) -> list[Tensor]:
    """Output, and gradient of the input, of one training pass."""
    x, vec = inputs(seed)
    output = model(x, vec)
    output.square().mean().backward()
    assert x.grad is not None
    return [output.detach(), x.grad]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
