"""The parts of HunyuanVideo, named as in the original checkpoints.

Shapes: B batch, L tokens, D hidden size, n heads, d head size (D = n * d), M MLP width, T text width.
Attribute names are the keys of the released files, and the two block classes' names are what adapters
look for, so neither may change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musubi_core.models.functional import (
    SINUSOID,
    Attend,
    layer_norm,
    modulate,
    rms_norm,
    sinusoid,
    split_heads,
)
from musubi_core.models.hunyuan_video.rope import Rope, rotate


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis: float32 inside, the input's dtype outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class TimeEmbedder(nn.Module):
    """A scalar per sample, (B,) -> (B, D): sinusoid, then a two-layer MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(sinusoid(t).to(dtype))


class VectorEmbedder(nn.Module):
    """Pooled text (B, P) -> (B, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class TextProjection(nn.Module):
    """The mean of the text states (B, T) -> (B, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class MLP(nn.Module):
    """(B, L, D) -> (B, L, D) through width M."""

    def __init__(self, hidden: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, width)
        self.act = activation
        self.fc2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Modulation(nn.Module):
    """`parts` vectors (B, D) of shift, scale and gate from the conditioning vector (B, D)."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(hidden, parts * hidden)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(vec)).chunk(self.parts, dim=-1)


class PatchEmbed(nn.Module):
    """(B, C, F, H, W) -> tokens (B, F * H/2 * W/2, D), frame by frame, row by row."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, hidden, kernel_size=(1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MMDoubleStreamBlock(nn.Module):
    """Image and text each with their own weights, joined in one attention."""

    def __init__(self, hidden: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        size = hidden // heads
        self.img_mod = Modulation(hidden, 6)
        self.img_attn_qkv = nn.Linear(hidden, 3 * hidden)
        self.img_attn_q_norm = RMSNorm(size)
        self.img_attn_k_norm = RMSNorm(size)
        self.img_attn_proj = nn.Linear(hidden, hidden)
        self.img_mlp = MLP(hidden, mlp_width, nn.GELU(approximate="tanh"))
        self.txt_mod = Modulation(hidden, 6)
        self.txt_attn_qkv = nn.Linear(hidden, 3 * hidden)
        self.txt_attn_q_norm = RMSNorm(size)
        self.txt_attn_k_norm = RMSNorm(size)
        self.txt_attn_proj = nn.Linear(hidden, hidden)
        self.txt_mlp = MLP(hidden, mlp_width, nn.GELU(approximate="tanh"))

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """img: (B, L_img, D), txt: (B, L_txt, D), vec: (B, D) -> img, txt."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        img_qkv = self.img_attn_qkv(modulate(layer_norm(img), img_shift1, img_scale1))
        img_q, img_k, img_v = split_heads(img_qkv, self.heads)
        img_q = rotate(self.img_attn_q_norm(img_q), rope)
        img_k = rotate(self.img_attn_k_norm(img_k), rope)

        txt_qkv = self.txt_attn_qkv(modulate(layer_norm(txt), txt_shift1, txt_scale1))
        txt_q, txt_k, txt_v = split_heads(txt_qkv, self.heads)
        txt_q, txt_k = self.txt_attn_q_norm(txt_q), self.txt_attn_k_norm(txt_k)

        joint = attend(
            torch.cat([img_q, txt_q], dim=1),
            torch.cat([img_k, txt_k], dim=1),
            torch.cat([img_v, txt_v], dim=1),
        ).flatten(2)
        img_attn, txt_attn = joint.split([img.shape[1], txt.shape[1]], dim=1)

        img = img + img_gate1.unsqueeze(1) * self.img_attn_proj(img_attn)
        img = img + img_gate2.unsqueeze(1) * self.img_mlp(modulate(layer_norm(img), img_shift2, img_scale2))
        txt = txt + txt_gate1.unsqueeze(1) * self.txt_attn_proj(txt_attn)
        txt = txt + txt_gate2.unsqueeze(1) * self.txt_mlp(modulate(layer_norm(txt), txt_shift2, txt_scale2))
        return img, txt


class MMSingleStreamBlock(nn.Module):
    """Image and text as one sequence; attention and MLP side by side."""

    def __init__(self, hidden: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (3 * hidden, mlp_width)
        size = hidden // heads
        self.linear1 = nn.Linear(hidden, 3 * hidden + mlp_width)
        self.linear2 = nn.Linear(hidden + mlp_width, hidden)
        self.q_norm = RMSNorm(size)
        self.k_norm = RMSNorm(size)
        self.modulation = Modulation(hidden, 3)

    def forward(self, x: Tensor, vec: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x: (B, L_img + L_txt, D), vec: (B, D) -> x."""
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(modulate(layer_norm(x), shift, scale)).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.heads)
        q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        attended = attend(q, k, v).flatten(2)
        return x + gate.unsqueeze(1) * self.linear2(
            torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=-1)
        )


class FinalLayer(nn.Module):
    """Image tokens (B, L, D) -> patches (B, L, 4 * C)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 4 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=-1)
        return self.linear(modulate(layer_norm(x), shift, scale))
