"""The parts of Wan, named as in the original checkpoints.

Shapes: B batch, L tokens, D hidden size, n heads, d head size (D = n * d), M MLP width, G groups of tokens
with one noise level each: 1, or the frames, or every token. Attribute names are the keys of the released
files, and the block class's name is what adapters look for, so neither may change.

Norms, modulation and what is added to the tokens are float32, whatever the weights and the tokens are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from musubi_core.models.functional import EPSILON, Attend, layer_norm, rms_norm
from musubi_core.models.wan.rope import Rope, rotate


def precise(layers: nn.Module, x: Tensor) -> Tensor:
    """Linear maps and what is between them in float32, whatever the weights are kept in."""
    weights = {name: weight.float() for name, weight in layers.named_parameters()}
    with torch.autocast(x.device.type, enabled=False):
        return functional_call(layers, weights, (x.float(),))


def by_group(x: Tensor, groups: int) -> Tensor:
    """(B, L, D) -> (B, G, L / G, D): tokens that share a vector, side by side."""
    return x.unflatten(1, (groups, -1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Norm, scale and shift. x: (B, L, D); shift, scale: (B, G, D) float32. Result like x."""
    grouped = by_group(layer_norm(x.float()), shift.shape[1])
    return (grouped * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2).to(x.dtype)


def add_gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + change * gate. x, change: (B, L, D); gate: (B, G, D) float32. Result like x."""
    groups = gate.shape[1]
    return (by_group(x, groups) + by_group(change, groups) * gate.unsqueeze(2)).flatten(1, 2).to(x.dtype)


class WanRMSNorm(nn.Module):
    """Root-mean-square norm over all heads together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight).to(x.dtype)


class WanLayerNorm(nn.LayerNorm):
    """LayerNorm with learned parameters, float32 inside, the input's dtype outside."""

    def __init__(self, width: int, epsilon: float = EPSILON) -> None:
        super().__init__(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class AttentionLayers(nn.Module):
    """The layers around an attention over n heads."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(hidden, hidden)
        self.k = nn.Linear(hidden, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.o = nn.Linear(hidden, hidden)
        self.norm_q = WanRMSNorm(hidden)
        self.norm_k = WanRMSNorm(hidden)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, n, d)."""
        return x.unflatten(-1, (self.heads, -1))


class WanSelfAttention(AttentionLayers):
    """Every token sees every token. (B, L, D) -> (B, L, D)."""

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        q = rotate(self.split(self.norm_q(self.q(x))), rope)
        k = rotate(self.split(self.norm_k(self.k(x))), rope)
        return self.o(attend(q, k, self.split(self.v(x))).flatten(2))


class WanCrossAttention(AttentionLayers):
    """Every token sees the text and, in a branch of its own, features of pictures."""

    def __init__(self, hidden: int, heads: int, *, pictures: bool) -> None:
        super().__init__(hidden, heads)
        if pictures:
            self.k_img = nn.Linear(hidden, hidden)
            self.v_img = nn.Linear(hidden, hidden)
            self.norm_k_img = WanRMSNorm(hidden)

    def forward(self, x: Tensor, text: Tensor, pictures: Tensor | None, attend: Attend) -> Tensor:
        """x: (B, L, D); text: (B, rows, D), all of which are seen; pictures: (B, tokens, D)."""
        q = self.split(self.norm_q(self.q(x)))
        seen = attend(q, self.split(self.norm_k(self.k(text))), self.split(self.v(text)))
        if pictures is not None:
            k = self.split(self.norm_k_img(self.k_img(pictures)))
            seen = seen + attend(q, k, self.split(self.v_img(pictures)))
        return self.o(seen.flatten(2))


class WanAttentionBlock(nn.Module):
    """Self-attention, cross-attention and MLP; the first and the last gated by the noise level."""

    def __init__(self, hidden: int, heads: int, mlp_width: int, *, pictures: bool) -> None:
        super().__init__()
        self.self_attn = WanSelfAttention(hidden, heads)
        self.norm3 = WanLayerNorm(hidden)
        self.cross_attn = WanCrossAttention(hidden, heads, pictures=pictures)
        self.ffn = nn.Sequential(
            nn.Linear(hidden, mlp_width), nn.GELU(approximate="tanh"), nn.Linear(mlp_width, hidden)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, hidden))

    def forward(
        self,
        x: Tensor,
        levels: Tensor,
        rope: Rope,
        text: Tensor,
        pictures: Tensor | None,
        attend: Attend,
    ) -> Tensor:
        """x: (B, L, D); levels: (B, G, 6, D) float32; text, pictures: (B, rows, D) -> x."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + levels).unbind(2)
        x = add_gated(x, self.self_attn(modulate(x, shift1, scale1), rope, attend), gate1)
        x = x + self.cross_attn(self.norm3(x), text, pictures, attend)
        return add_gated(x, self.ffn(modulate(x, shift2, scale2)), gate2)


class Head(nn.Module):
    """Tokens (B, L, D) -> patches (B, L, 4 * C) float32."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden, 4 * channels)
        self.modulation = nn.Parameter(torch.zeros(1, 2, hidden))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """level: (B, G, D) float32."""
        shift, scale = (self.modulation.float() + level.unsqueeze(2)).unbind(2)
        return precise(self.head, modulate(x.float(), shift, scale))


class PictureProjection(nn.Module):
    """Features of pictures (B, tokens, width) -> (B, tokens, D). tokens: how many have learned positions."""

    def __init__(self, width: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            WanLayerNorm(width, epsilon=1e-5),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, hidden),
            WanLayerNorm(hidden, epsilon=1e-5),
        )
        self.emb_pos = nn.Parameter(torch.zeros(1, tokens, width)) if tokens else None

    def forward(self, x: Tensor) -> Tensor:
        if self.emb_pos is not None:
            x = x + self.emb_pos[:, : x.shape[1]].to(x.dtype)
        return self.proj(x)
