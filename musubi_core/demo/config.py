"""Options of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Where the demo works and how long it trains."""

    output_dir: Path = option(
        Path("musubi_demo"),
        help="Folder for everything the demo makes. It is emptied of an earlier demo first.",
    )
    architecture: str | None = option(
        None, help="Architecture to show, e.g. from `musubi demo --help`; default: the first one."
    )
    max_train_steps: int = option(120, ge=20, help="Optimizer steps. The run is killed and resumed half-way.")
    seed: int = option(42, ge=0, help="Seed of weights, training and samples.")
