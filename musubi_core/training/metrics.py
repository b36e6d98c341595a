"""The numbers of a run: one JSON line per optimizer step, and TensorBoard or wandb when asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from musubi_core.config import read_toml
from musubi_core.device.libraries import library
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.replace import replace_file
from musubi_core.training.options.logging import LoggingOptions

Log: TypeAlias = Callable[[int, Mapping[str, float]], None]


class MetricsFile:
    """`<name>.metrics.jsonl`: {"step": 1, "loss/current": 0.5, ...} per line, flushed after each."""

    def __init__(self, path: Path, *, finished: int) -> None:
        """finished: steps of an earlier part of the run; later lines are dropped, so none stands twice."""
        self.path = path
        _keep_until(path, finished)
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadFileError(
                f"{path} cannot be written: {error.strerror}. Choose another output_dir."
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, oldest first. A last line that was cut off by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _keep_until(path: Path, finished: int) -> None:
    kept = (
        [one for one in read_metrics(path) if one["step"] <= finished] if path.is_file() and finished else []
    )
    with replace_file(path) as file:
        file.write("".join(json.dumps(one) + "\n" for one in kept).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """An open logger of another program."""

    log: Log
    close: Callable[[], None]


def open_trackers(
    options: LoggingOptions, *, stamp: str, config: Mapping[str, Any], finished: int
) -> list[Tracker]:
    """The loggers that were asked for. stamp: date and time of the start of the run, part of folder names.

    Raises MissingLibraryError, and ConfigError for a log_tracker_config that is not understood.
    """
    extra = read_toml(options.log_tracker_config) if options.log_tracker_config else {}
    unknown = sorted(set(extra) - {"tensorboard", "wandb"})
    if unknown:
        raise ConfigError(
            f"{options.log_tracker_config}: unknown table {unknown[0]!r}. Use [wandb] or [tensorboard]."
        )
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [makers[name](options, stamp, config, finished, extra.get(name, {})) for name in options.trackers]


def _tensorboard(
    options: LoggingOptions, stamp: str, config: Mapping[str, Any], finished: int, extra: Mapping[str, Any]
) -> Tracker:
    writer_class = library(
        "torch.utils.tensorboard", "tensorboard", option="log_with tensorboard"
    ).SummaryWriter
    assert options.logging_dir is not None  # checked with the options
    folder = (
        options.logging_dir / f"{options.log_prefix}{stamp}" / (options.log_tracker_name or "network_train")
    )
    writer = writer_class(str(folder), **{"purge_step": finished + 1 if finished else None, **extra})
    if config:
        writer.add_text("config", json.dumps(config, indent=2), 0)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log=log, close=writer.close)


def _wandb(
    options: LoggingOptions, stamp: str, config: Mapping[str, Any], finished: int, extra: Mapping[str, Any]
) -> Tracker:
    wandb = library("wandb", "wandb", option="log_with wandb")
    if options.wandb_api_key:
        wandb.login(key=options.wandb_api_key)
    arguments = {
        "project": options.log_tracker_name or "network_train",
        "name": options.wandb_run_name or f"{options.log_prefix}{stamp}",
        "dir": str(options.logging_dir) if options.logging_dir else None,
        "config": dict(config),
    }
    run = wandb.init(**{**arguments, **extra})
    return Tracker(log=lambda step, values: run.log(dict(values), step=step), close=run.finish)
