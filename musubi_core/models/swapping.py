"""`--blocks_to_swap` for a network: where its blocks are loaded to, and how they stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from musubi_core.errors import ConfigError
from musubi_core.models.spec import ArchSpec
from musubi_core.offload.config import SwapConfig
from musubi_core.offload.swap import Lists, Swap, placement, swap
from musubi_core.offload.visits import Visits


def swapped(spec: ArchSpec, options: SwapConfig, network: nn.Module) -> tuple[Lists, tuple[int, ...]]:
    """The lists of blocks of a network, and how many of each are swapped. Raises ConfigError for too many."""
    lists = spec.swap.lists(network) if spec.swap.lists else (spec.blocks(network),)
    return lists, spec.swap.counts(options.blocks_to_swap, [len(blocks) for blocks in lists])


def visitors(spec: ArchSpec, options: SwapConfig, network: nn.Module) -> list[nn.Module]:
    """What --img_in_txt_in_offloading keeps in host memory. Raises ConfigError where there is nothing."""
    if not options.img_in_txt_in_offloading:
        return []
    if not spec.swap.visitors:
        raise ConfigError(f"--img_in_txt_in_offloading is not available for {spec.name}. Leave it out.")
    return [network.get_submodule(name) for name in spec.swap.visitors]


def placing(
    spec: ArchSpec, options: SwapConfig, device: torch.device
) -> Callable[[nn.Module], Callable[[str], torch.device]] | None:
    """For LoadRequest.placement: swapped blocks are never on the device as a whole."""
    if options.nothing:
        return None
    return lambda network: placement(
        network, *swapped(spec, options, network), device, visitors(spec, options, network)
    )


def start_swap(spec: ArchSpec, options: SwapConfig, network: nn.Module, device: torch.device) -> Swap:
    """Swap from now on, until the result is released. Nothing happens when nothing is to be swapped."""
    if options.nothing:
        return Swap()
    lists, counts = swapped(spec, options, network)
    pinned = options.use_pinned_memory_for_block_swap
    held = swap(lists, counts, ring=options.block_swap_ring_size, device=device, pinned=pinned)
    outside = visitors(spec, options, network)
    return replace(held, visits=Visits(outside, device=device)) if outside else held
