"""`musubi inspect`: what a dataset file would train on, or what a file of weights holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.config import ConfigError, option
from musubi_core.events import Listener, ShouldStop
from musubi_core.files.tensor_info import TensorInfo

if TYPE_CHECKING:
    from musubi_core.models.spec import ArchSpec

_SHOWN = 12  # names of tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """What is looked at."""

    file: Path = option(
        help="A dataset file (.toml or .json), or a model, LoRA or cache file, or a folder of model shards."
    )
    architecture: str | None = option(
        None, help="Model family whose buckets and clip lengths are shown. Needed when there are several."
    )


def inspect(config: InspectConfig, listener: Listener, should_stop: ShouldStop) -> None:
    """Write the answer to stdout. Raises ConfigError or BadFileError for what cannot be read."""
    if not config.file.exists():
        raise ConfigError(f"{config.file} does not exist. Give a dataset file or a file of weights.")
    if config.file.suffix.lower() in (".toml", ".json") and not config.file.name.endswith(".index.json"):
        _write_dataset(config.file, config.architecture)
    else:
        sys.stdout.write(f"{weights_text(config.file)}\n")


def _write_dataset(path: Path, architecture: str | None) -> None:
    """The report on stdout. Raises ConfigError after it when a dataset has nothing to train on."""
    from musubi_core.data.dataset import read_datasets
    from musubi_core.data.report import report_text
    from musubi_core.data.scan import require_items, scan

    shape = _spec(architecture).latent
    scans = [scan(dataset, shape) for dataset in read_datasets(path)]
    sys.stdout.write(f"{report_text(scans)}\n")
    sys.stdout.flush()
    require_items(scans)


def _spec(name: str | None) -> ArchSpec:
    from musubi_core.models.registry import architecture, architectures

    if name is not None:
        return architecture(name)
    specs = architectures()
    if len(specs) > 1:
        names = " or ".join(spec.name for spec in specs)
        raise ConfigError(f"Buckets and clip lengths depend on the model. Give --architecture {names}.")
    return specs[0]


def weights_text(path: Path) -> str:
    """A summary of names, shapes, number formats and metadata; no weight is read."""
    from musubi_core.files.checkpoint import open_checkpoint
    from musubi_core.models.registry import architectures

    with open_checkpoint(path) as checkpoint:
        header, metadata = dict(checkpoint.header), dict(checkpoint.metadata)
    known = [spec.name for spec in architectures() if spec.detect(header) is not None]
    lines = [str(path), *_numbers(header)]
    lines.append(f"network of: {' or '.join(known)}" if known else "network of: no architecture known here")
    names = [f"  {name} {_shape(info)}" for name, info in header.items()]
    lines += ["tensors:", *names[:_SHOWN], *[f"  ... and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)]
    if metadata:
        lines += ["metadata:", *(f"  {key} = {_short(value)}" for key, value in sorted(metadata.items()))]
    return "\n".join(lines)


def _numbers(header: Mapping[str, TensorInfo]) -> list[str]:
    formats = Counter[str]()
    for info in header.values():
        formats[info.dtype] += prod(info.shape)
    parts = ", ".join(f"{count:,} {name}" for name, count in formats.most_common())
    return [f"{len(header)} tensors, {sum(formats.values()):,} numbers: {parts or 'none'}"]


def _shape(info: TensorInfo) -> str:
    return f"{'x'.join(map(str, info.shape)) or 'scalar'} {info.dtype}"


def _short(value: str) -> str:
    return value if len(value) <= 100 else f"{value[:100]}..."
