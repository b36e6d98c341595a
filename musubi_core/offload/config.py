"""Options of block swap and activation offload. Imports no torch: the command line is built from them."""

from __future__ import annotations

from dataclasses import dataclass

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapConfig:
    """What waits in host memory while the device computes. None of it changes a result."""

    blocks_to_swap: int = option(
        0,
        help="Transformer blocks whose weights wait in main memory until they are needed. Each one saves its "
        "size in GPU memory and costs a copy in either direction of a step. Needs --gradient_checkpointing.",
        ge=0,
    )
    block_swap_ring_size: int = option(
        2,
        help="Swapped blocks on the GPU at a time. 2 copies the next block while one computes; 1 uses least "
        "memory, but the GPU waits for each copy.",
        ge=1,
        advanced=True,
    )
    use_pinned_memory_for_block_swap: bool = option(
        False,
        help="Keep swapped weights in memory that the GPU reads directly: faster, but that memory cannot be "
        "swapped to disk, and Windows counts it as shared GPU memory.",
    )
    block_swap_h2d_only: bool = option(
        False,
        help="Accepted from older command lines. Weights of a frozen model are never copied back anyway.",
        advanced=True,
    )
    gradient_checkpointing_cpu_offload: bool = option(
        False,
        help="Let what --gradient_checkpointing keeps between forward and backward wait in main memory. "
        "Helps with long clips. Needs --gradient_checkpointing.",
    )

    img_in_txt_in_offloading: bool = option(
        False,
        help="Keep the layers that take in latents and captions in main memory, except while they compute.",
        advanced=True,
    )

    @property
    def nothing(self) -> bool:
        """Whether all weights stay on the device."""
        return not (self.blocks_to_swap or self.img_in_txt_in_offloading)

    def check(self, *, checkpointing: bool) -> None:
        """Raises ConfigError for offload without gradient checkpointing."""
        if checkpointing:
            return
        if self.blocks_to_swap:
            raise ConfigError(
                "--blocks_to_swap needs gradient checkpointing, because swapped weights are loaded again for "
                "the backward pass. Add --gradient_checkpointing, or set --blocks_to_swap 0."
            )
        if self.gradient_checkpointing_cpu_offload:
            raise ConfigError(
                "--gradient_checkpointing_cpu_offload moves what gradient checkpointing keeps, and that is "
                "off. Add --gradient_checkpointing, or leave it out."
            )
