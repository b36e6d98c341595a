"""Options that every job has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedConfig:
    """Where more options are read from."""

    config_file: Path | None = option(
        None,
        help="TOML file with options; .toml may be left out. Tables only tidy it up. The command line wins.",
    )
