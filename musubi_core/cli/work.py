"""The core's jobs with a last look: what was promised is on disk and can be read.

All have the form (config, listener, should_stop) and raise MusubiError when the promise is not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_core.cli.stop import StopRequest
from musubi_core.errors import BadFileError
from musubi_core.events import Event, FileWritten, Listener, ShouldStop

if TYPE_CHECKING:
    from musubi_core.training.cache_report import CacheReport


class Written:
    """A listener that passes events on and remembers the files that were written."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.paths: list[Path] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, FileWritten):
            self.paths.append(event.path)
        self._listener(event)


def cache_latents(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.training.cache_jobs import cache_latents as job

    written = Written(listener)
    report = job(config, written, should_stop)
    check_caches(report, written.paths)


def cache_text(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.training.cache_jobs import cache_text as job

    written = Written(listener)
    report = job(config, written, should_stop)
    check_caches(report, written.paths)


def train(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.training.run import train as job

    for path in job(config, listener, should_stop).loras:
        check_lora(path)


def generate(config: Any, listener: Listener, should_stop: StopRequest) -> None:
    from musubi_core.generation.job import generate as job

    for path in job(config, listener, should_stop, ask=lambda: should_stop.ask("prompt (empty to end)> ")):
        check_drawn(path)


def demo(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.demo.run import demo as job

    result = job(config, listener, should_stop)
    if result is not None:
        check_lora(result.lora)


def ema_merge(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.ema import ema_merge as job

    for path in job(config, listener, should_stop):
        check_weights(path)


def merge_lora(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.merge import merge_lora as job

    for path in job(config, listener, should_stop):
        check_weights(path)


def extract_lora(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.extract import extract_lora as job

    for path in job(config, listener, should_stop):
        check_weights(path)


def resize_lora(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.resize import resize_lora as job

    for path in job(config, listener, should_stop):
        check_weights(path)


def convert_lora(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.convert import convert_lora as job

    path = job(config, listener, should_stop)
    if path is not None:
        check_records(path)


def check_drawn(path: Path) -> None:
    """Raises BadFileError when a picture, clip, latent or model, or one of a folder, cannot be read back."""
    from musubi_core.data.picture_file import read_picture
    from musubi_core.data.video_file import decode

    if path.is_dir():
        for inside in path.iterdir():
            check_drawn(inside)
    elif path.suffix == ".png":
        read_picture(path)
    elif path.suffix == ".mp4":
        for _ in decode(path):
            pass
    else:
        check_weights(path)


def check_records(path: Path) -> None:
    """Raises BadFileError when a LoRA of any form cannot be read back whole."""
    from musubi_core.lora_tools.records import open_lora

    with open_lora(path) as source:
        for record in source.records:
            source.read(record)


def check_weights(path: Path) -> None:
    """Raises BadFileError when a file of weights cannot be read back whole."""
    from musubi_core.files.tensors import TensorFile

    with TensorFile(path) as file:
        for name in file.names:
            file.read(name)


def quantise_file(config: Any, listener: Listener, should_stop: ShouldStop) -> None:
    from musubi_core.lora_tools.fp8_file import quantise_file as job

    path = job(config, listener, should_stop)
    if path is not None:
        check_model(path, config.architecture)


def check_model(path: Path, named: str | None) -> None:
    """Raises BadFileError when a model file is not whole or not recognised. named: its architecture."""
    from musubi_core.lora_tools.base_model import open_base

    with open_base(path, named):
        pass


def check_lora(path: Path) -> None:
    """Raises BadFileError when the file is no whole LoRA: damaged, empty, incomplete or not finite."""
    from musubi_core.networks.reading import read_lora

    file = read_lora(path)
    if file.faults or file.unknown or not file.adapters:
        first = (file.faults or file.unknown or ["it has no adapter"])[0]
        raise BadFileError(f"{path} was written, but is not a usable LoRA: {first}. Please report this.")


def check_caches(report: CacheReport, written: list[Path]) -> None:
    """Raises BadFileError for media that could not be cached, and for a cache that is not whole on disk."""
    from musubi_core.files.header import read_header

    for path in written:
        if path.suffix == ".safetensors":
            read_header(path)
    if report.failed:
        lines = "\n".join(f"  {failure.source}: {failure.reason}" for failure in report.failed)
        raise BadFileError(
            f"These could not be cached ({len(report.failed)}):\n{lines}\n"
            "Mend or remove them and start again; what was made is kept."
        )
