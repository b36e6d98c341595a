"""The text refiner: two transformer blocks over the language model's states before they meet the image.

Shapes as in layers.py. Rows past a caption's length are zero on the way in and never reach a valid row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from musubi_core.models.functional import EPSILON, Attend, split_heads
from musubi_core.models.hunyuan_video.layers import MLP, TextProjection, TimeEmbedder


class RefinerBlock(nn.Module):
    """Self-attention and MLP, gated by the conditioning vector. No rotary positions, no q/k norm."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, eps=EPSILON)
        self.self_attn_qkv = nn.Linear(hidden, 3 * hidden)
        self.self_attn_proj = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=EPSILON)
        self.mlp = MLP(hidden, 4 * hidden, nn.SiLU())
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor, attend: Attend) -> Tensor:
        gate1, gate2 = self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)
        q, k, v = split_heads(self.self_attn_qkv(self.norm1(x)), self.heads)
        x = x + gate1 * self.self_attn_proj(attend(q, k, v).flatten(2))
        return x + gate2 * self.mlp(self.norm2(x))


class RefinerBlocks(nn.Module):
    """Only a level of naming that the checkpoints have."""

    def __init__(self, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(hidden, heads) for _ in range(depth))


class TextRefiner(nn.Module):
    """Text states (B, L, T) and the timestep -> refined text (B, L, D)."""

    def __init__(self, width: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(width, hidden)
        self.t_embedder = TimeEmbedder(hidden)
        self.c_embedder = TextProjection(width, hidden)
        self.individual_token_refiner = RefinerBlocks(hidden, heads, depth)

    def forward(self, text: Tensor, mean: Tensor, t: Tensor, attend: Attend) -> Tensor:
        """text, mean: (B, L, T) and (B, T), see `without_padding`; t: (B,) on 0..1000."""
        vec = self.t_embedder(t, text.dtype) + self.c_embedder(mean)
        x = self.input_embedder(text)
        for block in self.individual_token_refiner.blocks:
            x = block(x, vec, attend)
        return x


def without_padding(text: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Zero the rows past each caption's length, whatever they hold, and average the others.

    text: (B, L, T); lengths: B numbers from 1 to L. Returns (B, L, T) and the mean (B, T), added in float32.
    """
    counts = torch.tensor(lengths).to(text.device, non_blocking=True)  # a plain copy would make a card wait
    padding = torch.arange(text.shape[1], device=text.device) >= counts[:, None]
    text = text.masked_fill(padding[..., None], 0)
    return text, (text.float().sum(dim=1) / counts[:, None]).to(text.dtype)
