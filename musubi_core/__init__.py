"""The headless engine of ComfyUI-Musubi: jobs as plain functions.

    from musubi_core import train, TrainConfig

Nothing heavy is imported until a job is looked up.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_JOBS = {
    "CacheLatentsConfig": "musubi_core.training.cache_config",
    "CacheTextConfig": "musubi_core.training.cache_config",
    "cache_latents": "musubi_core.training.cache_jobs",
    "cache_text": "musubi_core.training.cache_jobs",
    "TrainConfig": "musubi_core.training.config",
    "train": "musubi_core.training.run",
    "GenerateConfig": "musubi_core.generation.config",
    "generate": "musubi_core.generation.job",
}

__all__ = ["__version__", *_JOBS]


def __getattr__(name: str) -> Any:
    if name not in _JOBS:
        raise AttributeError(f"module 'musubi_core' has no attribute {name!r}")
    return getattr(import_module(_JOBS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
