"""Which dataset a run trains on, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """The dataset file and its readers."""

    dataset_config: Path = option(
        help="Dataset file (TOML or JSON) that names the pictures, clips and captions."
    )
    max_data_loader_n_workers: int = option(
        8,
        help="Threads that read caches ahead of training. Never more than the machine has cores.",
        ge=0,
        advanced=True,
    )
    persistent_data_loader_workers: bool = option(
        False,
        help="Accepted from older command lines. Readers always live as long as the run anyway.",
        advanced=True,
    )
