"""Activations in host memory between forward and backward: from options to what does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from musubi_core.device.streams import CopyStream
from musubi_core.offload.activations import activations_on_host
from musubi_core.offload.config import SwapConfig

# What to put around a forward pass of a model.
Saving: TypeAlias = Callable[[nn.Module], AbstractContextManager[Any]]


def nowhere(model: nn.Module) -> AbstractContextManager[Any]:
    """Activations stay on the device."""
    return contextlib.nullcontext()


def saving(options: SwapConfig, device: torch.device) -> Saving:
    """Where activations wait between forward and backward."""
    if not options.gradient_checkpointing_cpu_offload:
        return nowhere
    return partial(activations_on_host, stream=CopyStream(device))
