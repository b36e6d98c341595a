"""The only place that knows the names of architectures."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from musubi_core.config import unknown_key

if TYPE_CHECKING:
    from musubi_core.models.spec import ArchSpec

SPECS = {
    "hunyuan_video": "musubi_core.models.hunyuan_video.spec",
    "flux_kontext": "musubi_core.models.flux_kontext.spec",
    "wan": "musubi_core.models.wan.spec",
}


@cache
def architecture(name: str) -> ArchSpec:
    """The spec registered under `name`. Raises ConfigError with the nearest names."""
    if name not in SPECS:
        raise unknown_key(name, SPECS, where="--architecture", kind="architecture")
    return import_module(SPECS[name]).SPEC


def architectures() -> tuple[ArchSpec, ...]:
    """Every registered spec, in the order of registration."""
    return tuple(architecture(name) for name in SPECS)
