"""The parts of FLUX.1, named as in the original checkpoints.

Shapes: B batch, L tokens, D hidden size, n heads, d head size (D = n * d), M MLP width.
Attribute names are the keys of the released files, and the two block classes' names are what adapters
look for, so neither may change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musubi_core.models.flux_kontext.rope import Rope, rotate
from musubi_core.models.functional import Attend, layer_norm, modulate, rms_norm, split_heads


class MLPEmbedder(nn.Module):
    """Two linear layers: (B, width) -> (B, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis: float32 inside, the input's dtype outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class QKNorm(nn.Module):
    """q, k: (B, L, n, d), each normed per head."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(size)
        self.key_norm = RMSNorm(size)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class SelfAttention(nn.Module):
    """The layers around one stream's share of the joint attention."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = QKNorm(hidden // heads)
        self.proj = nn.Linear(hidden, hidden)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> q and k, normed, and v, each (B, L, n, d)."""
        q, k, v = split_heads(self.qkv(x), self.heads)
        return *self.norm(q, k), v


class Modulation(nn.Module):
    """`parts` vectors (B, D) of shift, scale and gate from the conditioning vector (B, D)."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(hidden, parts * hidden)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec)).chunk(self.parts, dim=-1)


def _mlp(hidden: int, width: int) -> nn.Sequential:
    """(B, L, D) -> (B, L, D) through width M."""
    return nn.Sequential(nn.Linear(hidden, width), nn.GELU(approximate="tanh"), nn.Linear(width, hidden))


class DoubleStreamBlock(nn.Module):
    """Image and text each with their own weights, joined in one attention."""

    def __init__(self, hidden: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.img_mod = Modulation(hidden, 6)
        self.img_attn = SelfAttention(hidden, heads)
        self.img_mlp = _mlp(hidden, mlp_width)
        self.txt_mod = Modulation(hidden, 6)
        self.txt_attn = SelfAttention(hidden, heads)
        self.txt_mlp = _mlp(hidden, mlp_width)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """img: (B, L_img, D), txt: (B, L_txt, D), vec: (B, D) -> img, txt."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        img_q, img_k, img_v = self.img_attn.heads_of(modulate(layer_norm(img), img_shift1, img_scale1))
        txt_q, txt_k, txt_v = self.txt_attn.heads_of(modulate(layer_norm(txt), txt_shift1, txt_scale1))
        joint = attend(
            torch.cat([txt_q, rotate(img_q, rope)], dim=1),
            torch.cat([txt_k, rotate(img_k, rope)], dim=1),
            torch.cat([txt_v, img_v], dim=1),
        ).flatten(2)
        txt_attn, img_attn = joint.split([txt.shape[1], img.shape[1]], dim=1)

        img = img + img_gate1.unsqueeze(1) * self.img_attn.proj(img_attn)
        img = img + img_gate2.unsqueeze(1) * self.img_mlp(modulate(layer_norm(img), img_shift2, img_scale2))
        txt = txt + txt_gate1.unsqueeze(1) * self.txt_attn.proj(txt_attn)
        txt = txt + txt_gate2.unsqueeze(1) * self.txt_mlp(modulate(layer_norm(txt), txt_shift2, txt_scale2))
        return img, _within_half(txt)


class SingleStreamBlock(nn.Module):
    """Text and image as one sequence; attention and MLP side by side."""

    def __init__(self, hidden: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (3 * hidden, mlp_width)
        self.linear1 = nn.Linear(hidden, 3 * hidden + mlp_width)
        self.linear2 = nn.Linear(hidden + mlp_width, hidden)
        self.norm = QKNorm(hidden // heads)
        self.modulation = Modulation(hidden, 3)

    def forward(self, x: Tensor, vec: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x: (B, L_txt + L_img, D), vec: (B, D) -> x."""
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(modulate(layer_norm(x), shift, scale)).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.heads)
        q, k = self.norm(q, k)
        attended = attend(rotate(q, rope), rotate(k, rope), v).flatten(2)
        out = self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=-1))
        return _within_half(x + gate.unsqueeze(1) * out)


class LastLayer(nn.Module):
    """Image tokens (B, L, D) -> patches (B, L, channels of a token)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=-1)
        return self.linear(modulate(layer_norm(x), shift, scale))


def _within_half(x: Tensor) -> Tensor:
    """Activations of the released weights leave float16's range in a few channels; other dtypes pass."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest)
