"""FLUX.1 with reference pictures: the network alone, on one device, named as in the original checkpoints.

Shapes: B batch, C latent channels, h and w rows and columns of a latent, L tokens, D hidden size, n heads,
d head size, T width of the text states, P width of the pooled text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musubi_core.device.attention import attend
from musubi_core.errors import ConfigError
from musubi_core.models.flux_kontext.config import PATCH, FluxKontextConfig
from musubi_core.models.flux_kontext.layers import (
    DoubleStreamBlock,
    LastLayer,
    MLPEmbedder,
    SingleStreamBlock,
)
from musubi_core.models.flux_kontext.rope import Place, Rope, places, rope_table
from musubi_core.models.functional import SINUSOID, sinusoid
from musubi_core.sampling.through import Through, straight

ROPE_TABLES = 8  # combinations of sizes whose tables are kept
TIME_SCALE = 1000.0  # of noise levels in 0..1 and of the guidance alike


class FluxKontext(nn.Module):
    """The diffusion transformer. See `forward` for what goes in and out."""

    def __init__(
        self,
        config: FluxKontextConfig,
        *,
        attention: str = "sdpa",
        split_attention: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        # Text is padded to one length and takes part as a whole, so no sample is shorter than another.
        self._attend = partial(attend, kind=attention, split=split_attention)
        self._rope: dict[tuple[Any, ...], Rope] = {}

        hidden, heads = config.hidden, config.heads
        self.img_in = nn.Linear(PATCH * config.channels, hidden)
        self.time_in = MLPEmbedder(SINUSOID, hidden)
        self.vector_in = MLPEmbedder(config.pooled_width, hidden)
        self.guidance_in = MLPEmbedder(SINUSOID, hidden)
        self.txt_in = nn.Linear(config.text_width, hidden)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(hidden, heads, config.mlp_width) for _ in range(config.double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden, heads, config.mlp_width) for _ in range(config.single_blocks)
        )
        self.final_layer = LastLayer(hidden, PATCH * config.channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        text: Tensor,
        pooled: Tensor,
        guidance: Tensor,
        references: Sequence[Tensor] = (),
        placement: str = "offset",
        through: Through = straight,
    ) -> Tensor:
        """The velocity at x, (B, C, h, w).

        x: (B, C, h, w). t: (B,) in 0..1, 1 is pure noise. text: (B, L, T), every row takes part. pooled:
        (B, P). guidance: (B,), as users know it, e.g. 2.5. references: clean latents, (B, C, h', w') each.
        placement: where several references stand, one of rope.PLACEMENTS. through: how the tokens of all
        pictures (B, L, D), x first, get through the blocks.
        """
        pictures = [x, *references]
        for picture in pictures:
            self._check(picture)
        dtype = self.img_in.weight.dtype

        vec = self.time_in(sinusoid(t * TIME_SCALE).to(dtype))
        vec = vec + self.guidance_in(sinusoid(guidance * TIME_SCALE).to(dtype))
        vec = vec + self.vector_in(pooled.to(dtype))
        img = self.img_in(torch.cat([pack(picture.to(dtype)) for picture in pictures], dim=1))
        txt = self.txt_in(text.to(dtype))

        sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
        where = places(sizes[0], sizes[1:], placement)
        rope = self._rope_of(where, x.device)

        def blocks(img: Tensor) -> Tensor:
            words = txt
            for block in self.double_blocks:
                img, words = self._run(block, img, words, vec, rope, self._attend)
            both = torch.cat([words, img], dim=1)
            for block in self.single_blocks:
                both = self._run(block, both, vec, rope, self._attend)
            return both[:, words.shape[1] :]

        own = where[0].rows * where[0].columns
        return unpack(self.final_layer(through(blocks, img)[:, :own], vec), sizes[0])

    def _check(self, picture: Tensor) -> None:
        if picture.ndim != 4 or picture.shape[1] != self.config.channels:
            raise ConfigError(
                f"The network takes latents of {self.config.channels} channels, rows and columns, but was "
                f"given the shape {list(picture.shape[1:])}."
            )

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        """One block; with checkpointing its inner activations are computed again in the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # The random state is replayed, so that dropout inside adapters draws the same numbers again.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)

    def _rope_of(self, where: tuple[Place, ...], device: torch.device) -> Rope:
        key = (where, device)
        if key not in self._rope:
            if len(self._rope) >= ROPE_TABLES:
                del self._rope[next(iter(self._rope))]
            # A table first made for a preview under inference mode could not be used in training.
            with torch.inference_mode(False):
                self._rope[key] = rope_table(where, self.config.rope_axes, device)
        return self._rope[key]


def pack(x: Tensor) -> Tensor:
    """(B, C, h, w) -> tokens (B, h/2 * w/2, C * 2 * 2), row by row; a token is ordered channel, row, column.

    An odd last row or column is completed with the first one, as ComfyUI does it.
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="circular")
    grid = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The reverse of `pack` for a latent of `size` = (h, w); what completed an odd one is cut off."""
    height, width = size
    grid = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, ((height + 1) // 2, (width + 1) // 2))
    whole = grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, C, rows, columns)
    return whole[:, :, :height, :width]
