"""`musubi demo`: from photographs to a LoRA and its pictures, with nothing downloaded.

The code paths and file formats are those of the real thing; only the weights are tiny and random.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_core.config import build, options_of
from musubi_core.data.dataset import read_datasets
from musubi_core.data.training_set import open_training_set
from musubi_core.demo.config import DemoConfig
from musubi_core.demo.folder import fresh_folder
from musubi_core.demo.killed_run import read_metrics, train_with_a_kill
from musubi_core.demo.media import PHOTOGRAPHS, DemoMedia, write_media
from musubi_core.errors import TrainingError
from musubi_core.events import FileWritten, Listener, Note, ShouldStop, ignore, never
from musubi_core.files.replace import replace_file, write_text
from musubi_core.models.registry import architecture, architectures
from musubi_core.models.spec import ArchSpec, TinyFiles
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_jobs import cache_latents, cache_text
from musubi_core.training.cache_report import CacheReport

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "demo"
SAMPLES = tuple(PHOTOGRAPHS)[:3]
SAMPLE_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo leaves behind."""

    lora: Path
    loss_plot: Path
    grid: Path
    files: tuple[tuple[Path, str], ...]  # every file worth knowing, and what it is for


def demo(config: DemoConfig, emit: Listener = ignore, should_stop: ShouldStop = never) -> DemoResult | None:
    """Media, captions, dataset, caches, a run that is killed and resumed, samples and plots.

    Returns None when it was stopped. Raises ConfigError, MissingLibraryError or TrainingError.
    """
    spec = architecture(config.architecture) if config.architecture else architectures()[0]
    folder = fresh_folder(config.output_dir)
    emit(Note(text=f"Everything goes to {folder}. The weights are tiny and random: the pictures show the "
                   "machinery, not the quality."))  # fmt: skip
    tiny = spec.write_tiny(folder / "models", config.seed)
    media = write_media(folder / "media", spec.latent)
    cache(spec, media, tiny, emit, should_stop)
    if should_stop():
        return None
    settings = write_settings(folder / "train.toml", spec, media, tiny, config)
    metrics = folder / "output" / f"{NAME}.metrics.jsonl"
    killed_at = train_with_a_kill(
        settings,
        metrics,
        kill_at=config.max_train_steps // 2,
        steps=config.max_train_steps,
        emit=emit,
        should_stop=should_stop,
    )
    if should_stop():
        return None
    lora = folder / "output" / f"{NAME}.safetensors"
    plot = save(folder / "loss.png", loss_plot(metrics, killed_at), "loss plot", emit)
    grid = save(folder / "samples.png", sample_grid(spec, media, tiny, lora, config.seed), "samples", emit)
    files = listing(folder, media, settings, lora, metrics, plot, grid)
    emit(Note(text=words(files, folder)))
    return DemoResult(lora=lora, loss_plot=plot, grid=grid, files=files)


def cache(spec: ArchSpec, media: DemoMedia, tiny: TinyFiles, emit: Listener, should_stop: ShouldStop) -> None:
    """Latents and text of the dataset, by the two jobs that `musubi cache-latents` and `cache-text` run."""
    latents = CacheLatentsConfig(
        dataset_config=media.dataset,
        architecture=spec.name,
        vae=tiny.vae,
        device="cpu",
        arch_options=own_options(spec.latent_options, tiny),
    )
    _check(cache_latents(latents, emit, should_stop), "latents")
    texts = CacheTextConfig(
        dataset_config=media.dataset,
        architecture=spec.name,
        device="cpu",
        batch_size=4,
        arch_options=own_options(spec.text_options, tiny),
    )
    _check(cache_text(texts, emit, should_stop), "text")


def _check(report: CacheReport, kind: str) -> None:
    if report.failed:
        lines = "; ".join(f"{failure.source}: {failure.reason}" for failure in report.failed)
        raise TrainingError(f"The demo's {kind} could not be cached: {lines}")


def own_options(cls: type, tiny: TinyFiles) -> Any:
    """The option dataclass `cls` with the tiny files' values for the options that it declares."""
    known = {info.name for info in options_of(cls)}
    values = {name: value for name, value in tiny.options.items() if name in known}
    return build(cls, values, where="the demo")


def write_settings(path: Path, spec: ArchSpec, media: DemoMedia, tiny: TinyFiles, config: DemoConfig) -> Path:
    """The config file of the run: `musubi train --config_file train.toml` is all it takes."""
    known = {info.name for info in options_of(spec.train_options)}
    values: dict[str, Any] = {
        "dit": tiny.dit,
        "dataset_config": media.dataset,
        "architecture": spec.name,
        "network_dim": 8,
        "network_alpha": 8.0,
        "optimizer_type": "AdamW",
        "learning_rate": 2e-3,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 5,
        "timestep_sampling": "shift",
        "discrete_flow_shift": 3.0,
        "max_train_steps": config.max_train_steps,
        "mixed_precision": "no",
        "seed": config.seed,
        "save_every_n_steps": max(config.max_train_steps // 6, 1),
        "save_last_n_steps": 2,
        "resume": "auto",
        "output_dir": path.parent / "output",
        "output_name": NAME,
        **{name: value for name, value in tiny.options.items() if name in known},
    }
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    write_text(path, "# Written by `musubi demo`. Run it: musubi train --config_file train.toml\n"
                     + "\n".join(lines) + "\n")  # fmt: skip
    return path


def _toml(value: Any) -> str:
    """A JSON string or number is a TOML value too."""
    return json.dumps(value.as_posix() if isinstance(value, Path) else value, ensure_ascii=False)


def loss_plot(metrics: Path, killed_at: int) -> Image:
    """Loss of each step and its moving average."""
    from musubi_core.pictures.plot import curves, smooth

    points = [(row["step"], row["loss/current"]) for row in read_metrics(metrics)]
    title = f"Loss of the demo (killed at step {killed_at}, resumed, finished)"
    return curves({"each step": points, "smoothed": smooth(points, 0.9)}, title=title)


def sample_grid(spec: ArchSpec, media: DemoMedia, tiny: TinyFiles, lora: Path, seed: int) -> Image:
    """Base model beside LoRA, same captions and controls, same noise."""
    from musubi_core.demo.samples import base_beside_lora, open_sampler
    from musubi_core.pictures.grid import labelled_grid

    sampler = open_sampler(
        spec,
        dit=tiny.dit,
        vae=tiny.vae,
        lora=lora,
        latent_options=own_options(spec.latent_options, tiny),
        steps=SAMPLE_STEPS,
    )
    cached = open_training_set(read_datasets(media.dataset), spec.latent, spec.required_tensors)
    items = {item.stem: item for item in cached.items}
    rows = base_beside_lora(sampler, [items[name] for name in SAMPLES], seed=seed)
    return labelled_grid(
        rows,
        columns=["base model", "with the LoRA"],
        row_titles=[media.captions[name] for name in SAMPLES],
    )


def save(path: Path, image: Image, what: str, emit: Listener) -> Path:
    """Write a PNG whole and tell the listener."""
    with replace_file(path) as file:
        image.save(file, format="PNG")
    emit(FileWritten(path=path, what=what))
    return path


def listing(
    folder: Path, media: DemoMedia, settings: Path, lora: Path, metrics: Path, plot: Path, grid: Path
) -> tuple[tuple[Path, str], ...]:
    """What is on disk now, and what each is for."""
    photographs, controls = (media.dataset.parent / name for name in ("photographs", "controls"))
    before = ((controls, "the photographs before the edit that the captions ask for"),) if media.edits else ()
    return (
        (lora, "the LoRA: load it in ComfyUI or give it to --network_weights"),
        (grid, "base model beside LoRA, from the same noise"),
        (plot, "the loss of the run"),
        (metrics, "every step's numbers, one JSON line each"),
        (settings, "all options of the run: musubi train --config_file train.toml"),
        (media.dataset, "the dataset file: which pictures and clips, at which size"),
        (photographs, "photographs, each with its caption in a .txt of the same name"),
        *before,
        (media.dataset.parent / "cache", "latents and encoded captions, made once, reused by every run"),
        (folder / "models", "the tiny random network, VAE and text encoders, in the real file formats"),
        (lora.parent, "checkpoints and the run state from which --resume goes on exactly"),
    )


def words(files: tuple[tuple[Path, str], ...], folder: Path) -> str:
    """The listing as text. Raises TrainingError if a promised file is not there."""
    missing = [str(path) for path, _ in files if not path.exists()]
    if missing:
        raise TrainingError(f"The demo did not make {', '.join(missing)}. Please report this.")
    rows = [(path.relative_to(folder).as_posix(), what) for path, what in files]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {what}" for name, what in rows]
    return "\n".join([f"Done. In {folder}:", *lines])
