"""HunyuanVideo: the network alone, on one device, named as in the original checkpoints.

Shapes: B batch, C latent channels, F frames, H and W rows and columns of the latent, L tokens, D hidden size,
n heads, d head size, T width of the text states, P width of the pooled text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musubi_core.device.attention import attend
from musubi_core.errors import ConfigError
from musubi_core.models.functional import Attend
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.layers import (
    FinalLayer,
    MMDoubleStreamBlock,
    MMSingleStreamBlock,
    PatchEmbed,
    TimeEmbedder,
    VectorEmbedder,
)
from musubi_core.models.hunyuan_video.refiner import TextRefiner, without_padding
from musubi_core.models.hunyuan_video.rope import Rope, rope_table
from musubi_core.sampling.through import Through, straight

ROPE_TABLES = 8  # latent sizes whose tables are kept; one of a long clip takes 60 MB


class HunyuanVideo(nn.Module):
    """The diffusion transformer. See `forward` for what goes in and out."""

    def __init__(
        self,
        config: HunyuanVideoConfig,
        *,
        attention: str = "sdpa",
        split_attention: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.split_attention = split_attention
        self.checkpointing = checkpointing
        self._rope: dict[tuple[Any, ...], Rope] = {}

        hidden, heads = config.hidden, config.heads
        self.img_in = PatchEmbed(config.in_channels, hidden)
        self.txt_in = TextRefiner(config.text_width, hidden, heads, config.refiner_blocks)
        self.time_in = TimeEmbedder(hidden)
        self.vector_in = VectorEmbedder(config.pooled_width, hidden)
        self.guidance_in = TimeEmbedder(hidden) if config.guidance else None
        self.double_blocks = nn.ModuleList(
            MMDoubleStreamBlock(hidden, heads, config.mlp_width) for _ in range(config.double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            MMSingleStreamBlock(hidden, heads, config.mlp_width) for _ in range(config.single_blocks)
        )
        self.final_layer = FinalLayer(hidden, config.out_channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        text: Tensor,
        lengths: Sequence[int],
        pooled: Tensor,
        guidance: Tensor,
        through: Through = straight,
    ) -> Tensor:
        """The velocity at x, (B, C_out, F, H, W).

        x: (B, C_in, F, H, W), H and W even. t: (B,) on 0..1000, 1000 is pure noise. text: (B, L, T), of which
        the first lengths[i] rows are sample i's caption and the rest is never looked at. pooled: (B, P).
        guidance: (B,), ignored by a network without `guidance_in`. through: how the tokens of the picture
        (B, L, D) get through the blocks.
        """
        frames, rows, columns = self._grid(x)
        dtype = self.img_in.proj.weight.dtype
        longest = max(lengths)
        text, mean = without_padding(text[:, :longest].to(dtype), lengths)

        vec = self.time_in(t, dtype) + self.vector_in(pooled.to(dtype))
        if self.guidance_in is not None:
            vec = vec + self.guidance_in(guidance, dtype)
        img = self.img_in(x.to(dtype))
        txt = self.txt_in(text, mean, t, self._attend(lengths))

        rope = self._rope_of((frames, rows, columns), x.device)
        joint = self._attend([img.shape[1] + length for length in lengths])

        def blocks(img: Tensor) -> Tensor:
            words = txt
            for block in self.double_blocks:
                img, words = self._run(block, img, words, vec, rope, joint)
            both = torch.cat([img, words], dim=1)
            for block in self.single_blocks:
                both = self._run(block, both, vec, rope, joint)
            return both[:, : frames * rows * columns]

        return unpatchify(self.final_layer(through(blocks, img), vec), (frames, rows, columns))

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        channels, frames, height, width = x.shape[1:]
        if channels != self.config.in_channels:
            raise ConfigError(
                f"The network has {self.config.in_channels} input channels, but its input has {channels}."
            )
        if height % 2 or width % 2:
            raise ConfigError(
                f"A latent of {width}x{height} cannot be cut into 2x2 patches: width and height of the media "
                "must be multiples of 16 pixels."
            )
        return frames, height // 2, width // 2

    def _attend(self, lengths: Sequence[int]) -> Attend:
        """Attention among the first lengths[i] tokens of each sample."""
        valid = lengths if min(lengths) < max(lengths) else None
        return partial(attend, lengths=valid, kind=self.attention, split=self.split_attention)

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        """One block; with checkpointing its inner activations are computed again in the backward pass."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # The random state is replayed, so that dropout inside adapters draws the same numbers again.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)

    def _rope_of(self, size: tuple[int, int, int], device: torch.device) -> Rope:
        key = (size, device)
        if key not in self._rope:
            if len(self._rope) >= ROPE_TABLES:
                del self._rope[next(iter(self._rope))]
            # A table first made for a preview under inference mode could not be used in training.
            with torch.inference_mode(False):
                self._rope[key] = rope_table(size, self.config.rope_axes, device)
        return self._rope[key]


def unpatchify(patches: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, F * h * w, C * 2 * 2) -> (B, C, F, 2h, 2w); a patch is ordered channel, row, column."""
    frames, rows, columns = size
    grid = patches.view(len(patches), frames, rows, columns, -1, 2, 2)  # (B, F, h, w, C, 2, 2)
    return grid.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
