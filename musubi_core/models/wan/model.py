"""Wan 2.1 and 2.2: the network alone, on one device, named as in the original checkpoints.

Shapes: B batch, C latent channels, F frames, H and W rows and columns of the latent, L tokens, D hidden size,
T width of the text states, P width of picture features, G groups of tokens with one noise level each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musubi_core.device.attention import attend
from musubi_core.errors import ConfigError
from musubi_core.models.functional import sinusoid
from musubi_core.models.wan.config import TIME_WAVES, WanConfig
from musubi_core.models.wan.layers import Head, PictureProjection, WanAttentionBlock, precise
from musubi_core.models.wan.rope import POSITIONS, Rope, axis_tables, rope_table
from musubi_core.sampling.through import Through, straight

ROPE_TABLES = 8  # latent sizes whose tables are kept; one of a long clip takes 20 MB
NO_PICTURE_TOKENS = 257  # of zeros, where a network that looks at pictures is shown none


class Wan(nn.Module):
    """The diffusion transformer. See `forward` for what goes in and out."""

    def __init__(
        self,
        config: WanConfig,
        *,
        attention: str = "sdpa",
        split_attention: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        # All samples of a batch have one size, and text is padded to one length and takes part as a whole.
        self._attend = partial(attend, kind=attention, split=split_attention)
        self._rope: dict[tuple[Any, ...], Rope] = {}
        self._tables: dict[torch.device, tuple[Rope, Rope, Rope]] = {}

        hidden, pictures = config.hidden, config.picture_width > 0
        self.patch_embedding = nn.Conv3d(config.in_channels, hidden, (1, 2, 2), stride=(1, 2, 2))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, hidden)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(TIME_WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.blocks = nn.ModuleList(
            WanAttentionBlock(hidden, config.heads, config.mlp_width, pictures=pictures)
            for _ in range(config.layers)
        )
        self.head = Head(hidden, config.out_channels)
        self.img_emb = (
            PictureProjection(config.picture_width, hidden, config.picture_tokens) if pictures else None
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        text: Tensor,
        beside: Tensor | None = None,
        pictures: Tensor | None = None,
        frame_positions: Tensor | None = None,
        through: Through = straight,
    ) -> Tensor:
        """The velocity at x, (B, C_out, F, H, W) float32.

        x: (B, C, F, H, W), H and W even. t: 0..1000, 1000 is pure noise; (B,), or (B, F) or (B, L) where
        frames or tokens differ. text: (B, rows, T); every row takes part, so captions are padded to the
        length that the network was trained with. beside: (B, C', F, H, W), further channels after those of x.
        pictures: (B, tokens, P) from CLIP; None means zeros to a network that looks at pictures.
        frame_positions: (B, F) whole numbers below POSITIONS, the time of each frame; None counts from 0.
        through: how the tokens (B, L, D) get through the blocks.
        """
        x = x if beside is None else torch.cat([x, beside.to(x)], dim=1)
        size = self._grid(x)
        dtype = self.patch_embedding.weight.dtype

        level, levels = self._time(_grouped(t, size))
        words = self.text_embedding(text.to(dtype))
        seen = self._seen(pictures, len(x), x.device)
        tokens = self.patch_embedding(x.to(dtype)).flatten(2).transpose(1, 2)
        rope = self._rope_of(size, x.device, frame_positions)

        def blocks(tokens: Tensor) -> Tensor:
            for block in self.blocks:
                tokens = self._run(block, tokens, levels, rope, words, seen, self._attend)
            return tokens

        return unpatchify(self.head(through(blocks, tokens), level), size)

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        channels, frames, height, width = x.shape[1:]
        if channels != self.config.in_channels:
            raise ConfigError(
                f"The network has {self.config.in_channels} input channels, but its input has {channels}."
            )
        if height % 2 or width % 2:
            raise ConfigError(
                f"A latent of {width}x{height} cannot be cut into 2x2 patches: width and height of the media "
                "must be multiples of two latent cells (16 pixels, TI2V-5B 32)."
            )
        if max(frames, height // 2, width // 2) > POSITIONS:
            raise ConfigError(
                f"A latent of {frames} frames of {width}x{height} is larger than the {POSITIONS} positions "
                "that the network knows along each axis. Use shorter or smaller clips."
            )
        return frames, height // 2, width // 2

    def _time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t: (B, G) -> (B, G, D) for the head and (B, G, 6, D) for the blocks, float32."""
        waves = sinusoid(t.flatten(), TIME_WAVES).unflatten(0, t.shape)
        level = precise(self.time_embedding, waves)
        return level, precise(self.time_projection, level).unflatten(-1, (6, -1))

    def _seen(self, pictures: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """What CLIP saw, as tokens (B, tokens, D); None for a network that looks at no pictures."""
        if self.img_emb is None:
            return None
        width, known = self.config.picture_width, self.config.picture_tokens
        if pictures is None:
            pictures = torch.zeros(batch, known or NO_PICTURE_TOKENS, width, device=device)
        if pictures.shape[2] != width or (known and pictures.shape[1] > known):
            raise ConfigError(
                f"The network takes {f'up to {known}' if known else 'any number of'} picture features of "
                f"width {width}, but was given the shape {list(pictures.shape[1:])}. Cache the latents again "
                "with the CLIP encoder that belongs to it."
            )
        return self.img_emb(pictures.to(self.patch_embedding.weight.dtype))

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """One block; with checkpointing its inner activations are computed again in the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # The random state is replayed, so that dropout inside adapters draws the same numbers again.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)

    def _rope_of(self, size: tuple[int, int, int], device: torch.device, positions: Tensor | None) -> Rope:
        # Tables first made for a preview under inference mode could not be used in training.
        with torch.inference_mode(False):
            if device not in self._tables:
                self._tables[device] = axis_tables(self.config.rope_axes, device)
            tables = self._tables[device]
            if positions is not None:
                return rope_table(tables, size, positions)
            key = (size, device)
            if key not in self._rope:
                if len(self._rope) >= ROPE_TABLES:
                    del self._rope[next(iter(self._rope))]
                self._rope[key] = rope_table(tables, size)
            return self._rope[key]


def _grouped(t: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Noise levels as (B, G) with G = 1, the frames or the tokens. Raises ValueError for another number."""
    t = t.reshape(len(t), -1)
    frames, rows, columns = size
    if t.shape[1] not in (1, frames, frames * rows * columns):
        raise ValueError(f"{t.shape[1]} noise levels do not fit a latent of {size} tokens")
    return t


def unpatchify(patches: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, F * h * w, 2 * 2 * C) -> (B, C, F, 2h, 2w); a patch is ordered row, column, channel."""
    frames, rows, columns = size
    grid = patches.view(len(patches), frames, rows, columns, 2, 2, -1)  # (B, F, h, w, 2, 2, C)
    return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
