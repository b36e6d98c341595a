"""Where the numbers of a run go, besides its metrics file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingOptions:
    """TensorBoard and Weights & Biases."""

    logging_dir: Path | None = option(
        None, help="Folder for TensorBoard logs; each run gets its own folder inside, named by date and time."
    )
    log_with: str | None = option(
        None,
        help="Where to log. tensorboard when logging_dir is given, else nowhere.",
        choices=("tensorboard", "wandb", "all"),
    )
    log_prefix: str = option("", help="Text before the date in the name of the log folder.", advanced=True)
    log_tracker_name: str | None = option(
        None,
        help="Name of the experiment, or of the wandb project. network_train when not given.",
        advanced=True,
    )
    wandb_run_name: str | None = option(None, help="Name of the run in wandb.", advanced=True)
    wandb_api_key: str | None = option(None, help="Key to log in to wandb with.", advanced=True)
    log_tracker_config: Path | None = option(
        None,
        help="TOML file with further arguments for the logger, in a table named wandb or tensorboard.",
        advanced=True,
    )
    log_config: bool = option(
        False, help="Also log the options of the run, without keys and main paths.", advanced=True
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """tensorboard, wandb, both or none."""
        if self.log_with == "all":
            return ("tensorboard", "wandb")
        if self.log_with:
            return (self.log_with,)
        return ("tensorboard",) if self.logging_dir else ()

    def check(self) -> None:
        """Raises ConfigError when TensorBoard has no folder."""
        if "tensorboard" in self.trackers and self.logging_dir is None:
            raise ConfigError(f"log_with {self.log_with} needs logging_dir, the folder for TensorBoard logs.")
