"""Modules of diffusers and transformers without memory, to be filled from a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def empty(build: Callable[[], M]) -> M:
    """What `build` makes, its parameters on the meta device; buffers, e.g. rotary frequencies, are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()
