"""Functions that are imported when they are first called, so that a spec costs no heavy library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def lazily(module: str, name: str) -> Callable[..., Any]:
    """A stand-in for the function `name` of `module` with the same arguments and result."""

    @cache
    def found() -> Callable[..., Any]:
        return getattr(import_module(module), name)

    def call(*arguments: Any) -> Any:
        return found()(*arguments)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"See {module}.{name}."
    return call
