"""What travels along the links of the pack: connection types, and the Python values behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.config import ConfigError
from musubi_core.files.replace import write_text
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec

from .folders import temp_folder

DatasetType = io.Custom("MUSUBI_DATASET")
ModelType = io.Custom("MUSUBI_MODEL")
LatentsType = io.Custom("MUSUBI_LATENTS")
TextsType = io.Custom("MUSUBI_TEXTS")
NetworkType = io.Custom("MUSUBI_NETWORK")
OptimizerType = io.Custom("MUSUBI_OPTIMIZER")
TimestepsType = io.Custom("MUSUBI_TIMESTEPS")
MemoryType = io.Custom("MUSUBI_MEMORY")
SavingType = io.Custom("MUSUBI_SAVING")
SamplesType = io.Custom("MUSUBI_SAMPLES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One or more `[[datasets]]` tables, checked. Values are those of JSON."""

    tables: tuple[Mapping[str, Any], ...]

    def file(self) -> Path:
        """A dataset file with these tables, for the core. Its name follows from its content."""
        text = json.dumps({"datasets": self.tables}, indent=1)
        path = temp_folder() / "datasets" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            write_text(path, text)
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The options of VAE and text encoders, as TrainConfig wants them for drawing."""

    latent: Any
    text: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingModel:
    """Files of a base model and the options of its architecture."""

    architecture: str
    dit: Path
    vae: Path | None
    latent_options: Any
    text_options: Any
    train_options: Any

    @property
    def spec(self) -> ArchSpec:
        return architecture(self.architecture)

    @property
    def encoders(self) -> Encoders:
        return Encoders(latent=self.latent_options, text=self.text_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A dataset whose latents, or texts, are on disk for this model."""

    dataset: Dataset
    model: TrainingModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options by name, checked by the node that they come from."""

    values: Mapping[str, Any]


def combined(datasets: Sequence[Dataset]) -> Dataset:
    """All tables together."""
    tables = tuple(table for dataset in datasets for table in dataset.tables)
    if not tables:
        raise ConfigError("Combine Datasets has no dataset. Connect at least one.")
    return Dataset(tables=tables)
