"""`--debug_mode`: look at a dataset as its encoder would see it, without caching anything.

image: contact sheets, samples with their captions, as PNG files. video: each sample as MP4 or JPEG, named
like its cache. console: pictures made of coloured characters. All is told through events.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from musubi_core.data.console_art import console_lines
from musubi_core.data.items import Sample
from musubi_core.data.pixels import LoadedSample, load_item_samples
from musubi_core.data.scan import Scan
from musubi_core.data.video_writer import write_mp4
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Listener, Note, Preview, Progress, ShouldStop, Warned, never
from musubi_core.files.replace import replace_file

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, COLUMNS, ROWS, TEXT_LINES = 256, 4, 4, 4  # contact sheet: size of a cell, cells, caption lines below


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """mode: image, console or video. folder: where files go; the dataset's preview folder when None.

    width, back: console characters per line, and background as a colour name or an escape sequence.
    per_dataset: samples shown of each dataset, None for all.
    """

    mode: str
    folder: Path | None = None
    width: int = 80
    back: str | None = None
    per_dataset: int | None = None


Show: TypeAlias = Callable[[Scan, Sequence[LoadedSample], PreviewRequest, Listener], None]


def preview(
    scans: Sequence[Scan], request: PreviewRequest, emit: Listener, should_stop: ShouldStop = never
) -> list[str]:
    """Show the samples of all datasets. Returns what could not be shown, one line per damaged file."""
    if request.mode not in _SHOWS:
        raise ConfigError(f"--debug_mode {request.mode}: choose one of {', '.join(_SHOWS)}.")
    show, at_once = _SHOWS[request.mode]
    failures: list[str] = []
    for scan in scans:
        total = len(scan.samples[: request.per_dataset])
        held: list[LoadedSample] = []
        for done, loaded in enumerate(_samples(scan, request.per_dataset, failures), start=1):
            if should_stop():
                return failures
            held.append(loaded)
            if len(held) == at_once:
                show(scan, held, request, emit)
                held = []
            emit(Progress(stage="preview", done=done, total=total, text=loaded.sample.item.path.name))
        if held:
            show(scan, held, request, emit)
    for line in failures:
        emit(Warned(text=line))
    return failures


def _samples(scan: Scan, limit: int | None, failures: list[str]) -> Iterator[LoadedSample]:
    """The first `limit` samples with their pixels; damaged files are named in `failures`."""
    by_item: dict[int, list[Sample]] = {}
    for sample in scan.samples[:limit]:
        by_item.setdefault(id(sample.item), []).append(sample)
    for samples in by_item.values():
        try:
            yield from load_item_samples(samples[0].item, samples, scan.dataset, scan.shape)
        except BadFileError as error:
            failures.append(str(error))


def _show_sheet(scan: Scan, held: Sequence[LoadedSample], request: PreviewRequest, emit: Listener) -> None:
    """One PNG with the first frame of up to COLUMNS * ROWS samples and the beginning of their captions."""
    from PIL import Image, ImageDraw

    rows = -(-len(held) // COLUMNS)
    line = 14
    height = CELL + line * (TEXT_LINES + 1)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, loaded in enumerate(held):
        left, top = place % COLUMNS * CELL, place // COLUMNS * height
        thumbnail = _as_image(loaded.frames[0])
        thumbnail.thumbnail((CELL - 8, CELL - 8))
        sheet.paste(thumbnail, (left + 4, top + 4))
        for number, text in enumerate(_labels(loaded.sample)):
            draw.text((left + 4, top + CELL + line * number), text, fill="black")
    folder = request.folder or scan.dataset.preview_folder
    path = folder / f"preview_{_name(held[0].sample, scan)}.png"
    with replace_file(path) as file:
        sheet.save(file, format="PNG")
    emit(FileWritten(path=path, what="dataset preview"))
    emit(Preview(step=0, title=path.name, frames=np.asarray(sheet)[None]))


def _labels(sample: Sample) -> list[str]:
    """File, size and window, then the first lines of the caption."""
    head = f"{sample.item.path.name[:22]} {sample.bucket[0]}x{sample.bucket[1]}"
    if sample.item.is_video:
        head += f" {sample.start}+{sample.frames}"
    lines = textwrap.wrap(sample.item.caption, 40, max_lines=TEXT_LINES) or ["(no caption)"]
    return [text.encode("latin-1", "replace").decode("latin-1") for text in (head, *lines)]


def _show_file(scan: Scan, held: Sequence[LoadedSample], request: PreviewRequest, emit: Listener) -> None:
    """An MP4 of each clip and a JPEG of each picture, named like its cache."""
    folder = request.folder or scan.dataset.preview_folder
    for loaded in held:
        moving = loaded.sample.item.is_video and len(loaded.frames) > 1
        path = folder / f"{_name(loaded.sample, scan)}.{'mp4' if moving else 'jpg'}"
        with replace_file(path) as file:
            if moving:
                write_mp4(file, loaded.frames, scan.shape.fps)
            else:
                _as_image(loaded.frames[0]).save(file, format="JPEG", quality=92)
        emit(FileWritten(path=path, what="dataset preview"))
        emit(Preview(step=0, title=path.name, frames=loaded.frames[..., :3], fps=scan.shape.fps))


def _show_text(scan: Scan, held: Sequence[LoadedSample], request: PreviewRequest, emit: Listener) -> None:
    for loaded in held:
        sample = loaded.sample
        emit(Note(text=f"{_name(sample, scan)}: {sample.item.caption}"))
        for line in console_lines(loaded.frames[0, ..., :3], request.width, request.back):
            emit(Note(text=line))


def _as_image(picture: NDArray[np.uint8]) -> Image:
    """(H, W, 3 or 4) uint8 as RGB."""
    from PIL import Image

    return Image.fromarray(picture).convert("RGB")


def _name(sample: Sample, scan: Scan) -> str:
    """The name of the sample's latent cache without its extension."""
    return sample.latent_name(scan.shape.short).removesuffix(".safetensors")


_SHOWS: Mapping[str, tuple[Show, int]] = {  # how, and how many samples at once
    "image": (_show_sheet, COLUMNS * ROWS),
    "console": (_show_text, 1),
    "video": (_show_file, 1),
}
