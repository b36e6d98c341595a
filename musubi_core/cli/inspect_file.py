"""`musubi inspect`: what a dataset file would train on, or what a file of weights holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.config import ConfigError, build, option, options_of
from musubi_core.events import Listener, ShouldStop

if TYPE_CHECKING:
    from musubi_core.config import LatentShape
    from musubi_core.models.spec import ArchSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """What is looked at."""

    file: Path = option(
        help="A dataset file (.toml or .json), or a model, LoRA or cache file, or a folder of model shards."
    )
    architecture: str | None = option(
        None, help="Model family whose buckets and clip lengths are shown. Needed when there are several."
    )
    task: str | None = option(
        None,
        help="Member of the model family, as cache-latents knows it, where sizes depend on it. For datasets.",
    )
    plot: Path | None = option(
        None,
        help="For a LoRA or a model: also draw the norm of each block, as a PNG. This reads the weights.",
    )


def inspect(config: InspectConfig, listener: Listener, should_stop: ShouldStop) -> None:
    """Write the answer to stdout. Raises ConfigError or BadFileError for what cannot be read."""
    if not config.file.exists():
        raise ConfigError(f"{config.file} does not exist. Give a dataset file or a file of weights.")
    if config.file.suffix.lower() in (".toml", ".json") and not config.file.name.endswith(".index.json"):
        _write_dataset(config.file, _latent_shape(config.architecture, config.task))
    else:
        _write_weights(config, listener, should_stop)


def _write_weights(config: InspectConfig, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.inspect import description, norms_picture

    sys.stdout.write(f"{description(config.file)}\n")
    sys.stdout.flush()
    if config.plot is not None:
        norms_picture(config.file, config.plot, listener, should_stop)


def _write_dataset(path: Path, shape: LatentShape) -> None:
    """The report on stdout. Raises ConfigError after it when a dataset has nothing to train on."""
    from musubi_core.data.dataset import read_datasets
    from musubi_core.data.report import report_text
    from musubi_core.data.scan import require_items, scan

    scans = [scan(dataset, shape) for dataset in read_datasets(path)]
    sys.stdout.write(f"{report_text(scans)}\n")
    sys.stdout.flush()
    require_items(scans)


def _latent_shape(architecture: str | None, task: str | None) -> LatentShape:
    """Raises ConfigError when that depends on a model or task that was not named, or is not known."""
    spec = _spec(architecture)
    if task is None:
        return spec.latent
    if "task" not in {info.name for info in options_of(spec.latent_options)}:
        raise ConfigError(f"{spec.name} has no tasks to choose from. Leave out --task.")
    return spec.latent_with(build(spec.latent_options, {"task": task}, where="--task"))


def _spec(name: str | None) -> ArchSpec:
    from musubi_core.models.registry import architecture, architectures

    if name is not None:
        return architecture(name)
    specs = architectures()
    if len(specs) > 1:
        names = " or ".join(spec.name for spec in specs)
        raise ConfigError(f"Buckets and clip lengths depend on the model. Give --architecture {names}.")
    return specs[0]
