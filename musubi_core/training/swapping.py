"""Block swap of the networks of a run, and activations in host memory: from options to what does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from musubi_core.device.streams import CopyStream
from musubi_core.models.spec import ArchSpec
from musubi_core.offload.activations import activations_on_host
from musubi_core.offload.config import SwapConfig
from musubi_core.offload.swap import Lists, Swap, placement, swap

# What to put around a forward pass of a model.
Saving: TypeAlias = Callable[[nn.Module], AbstractContextManager[Any]]


def swapped(spec: ArchSpec, options: SwapConfig, network: nn.Module) -> tuple[Lists, tuple[int, ...]]:
    """The lists of blocks of a network, and how many of each are swapped. Raises ConfigError for too many."""
    lists = spec.swap.lists(network) if spec.swap.lists else (spec.blocks(network),)
    return lists, spec.swap.counts(options.blocks_to_swap, [len(blocks) for blocks in lists])


def placing(
    spec: ArchSpec, options: SwapConfig, device: torch.device
) -> Callable[[nn.Module], Callable[[str], torch.device]] | None:
    """For LoadRequest.placement: swapped blocks are never on the device as a whole."""
    if not options.blocks_to_swap:
        return None
    return lambda network: placement(network, *swapped(spec, options, network), device)


def start_swap(spec: ArchSpec, options: SwapConfig, network: nn.Module, device: torch.device) -> Swap:
    """Swap from now on, until the result is released. Nothing happens when nothing is to be swapped."""
    if not options.blocks_to_swap:
        return Swap()
    lists, counts = swapped(spec, options, network)
    pinned = options.use_pinned_memory_for_block_swap
    return swap(lists, counts, ring=options.block_swap_ring_size, device=device, pinned=pinned)


def nowhere(model: nn.Module) -> AbstractContextManager[Any]:
    """Activations stay on the device."""
    return contextlib.nullcontext()


def saving(options: SwapConfig, device: torch.device) -> Saving:
    """Where activations wait between forward and backward."""
    if not options.gradient_checkpointing_cpu_offload:
        return nowhere
    return partial(activations_on_host, stream=CopyStream(device))
