"""What a dataset's folder names: media with their captions, layers and controls. Nothing is opened but
captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from musubi_core.data.captions import caption_path, read_caption
from musubi_core.data.companions import Companions, control_videos, entries_of, numbered, pictures_in
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.data.items import Skipped
from musubi_core.data.picture_file import FOREIGN_PICTURES, is_picture
from musubi_core.data.video_file import is_video
from musubi_core.errors import BadFileError, ConfigError

NO_CAPTION = "have no caption"
NO_CONTROL = "have no control"
FOREIGN = "are of a kind that is not read here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A media file that is used if it can be read. key: the text that tells it from others of its name."""

    path: Path
    key: str
    caption: str
    targets: tuple[Path, ...] = ()
    controls: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def list_folder(dataset: DatasetConfig, *, with_controls: bool) -> Listing:
    """The media of a folder, sorted by path; sub-folders are not searched."""
    folder = dataset.source
    entries = entries_of(folder)
    media = [file for file in entries if _is_media(file, dataset) and file.is_file()]
    skipped = [skip for file in entries if (skip := _foreign(file, dataset))]
    notes = _folder_notes(dataset, entries)
    layers = _layers(media, dataset) if dataset.multiple_target else Companions(by_stem={})
    owned = {file for files in layers.by_stem.values() for file in files}
    candidates: list[Candidate] = []
    for file in media:
        if file in owned:
            continue
        try:
            caption = read_caption(caption_path(file, dataset.caption_extension))
        except BadFileError as error:
            skipped.append(Skipped(path=file, reason=str(error), group=NO_CAPTION))
            continue
        candidates.append(Candidate(path=file, key=file.name, caption=caption))
    listing = Listing(candidates=tuple(candidates), skipped=tuple(skipped), notes=tuple(notes))
    if dataset.multiple_target:
        listing = _with_layers(listing, layers, dataset)
    if with_controls and dataset.control_directory is not None:
        listing = _with_controls(listing, dataset, dataset.control_directory)
    return listing


def _is_media(file: Path, dataset: DatasetConfig) -> bool:
    return is_video(file) if dataset.is_video else is_picture(file)


def _foreign(file: Path, dataset: DatasetConfig) -> Skipped | None:
    """Why a file that looks like media is not used; None for media that are, and for all other files."""
    if not file.is_file() or _is_media(file, dataset):
        return None
    if dataset.is_video and is_picture(file):
        reason = "is a picture, and this dataset reads videos."
    elif not dataset.is_video and is_video(file):
        reason = "is a video, and this dataset reads pictures."
    elif file.suffix.lower() in FOREIGN_PICTURES:
        reason = f"{file.suffix} pictures are not supported here; convert it to PNG or JPEG."
    else:
        return None
    return Skipped(path=file, reason=reason, group=FOREIGN)


def _folder_notes(dataset: DatasetConfig, entries: Sequence[Path]) -> list[str]:
    """A note on sub-folders with media in them, other than those that this dataset itself uses."""
    used = {path.resolve() for path in (dataset.control_directory, dataset.cache_directory) if path}
    used.add(dataset.preview_folder.resolve())
    inner = [entry for entry in entries if entry.is_dir() and entry.resolve() not in used]
    full = [entry.name for entry in inner if _has_media(entry)]
    if not full:
        return []
    return [f"{len(full)} sub-folders with pictures or videos were not searched (first: {full[0]})."]


def _has_media(folder: Path) -> bool:
    try:
        return any(is_picture(file) or is_video(file) for file in folder.iterdir())
    except OSError:  # a folder that nobody asked for and that cannot be listed is not worth a line
        return False


def _layers(media: Sequence[Path], dataset: DatasetConfig) -> Companions:
    """Layers are pictures without a caption named after one that has a caption."""
    titled = {file for file in media if caption_path(file, dataset.caption_extension).is_file()}
    return numbered((file.stem for file in titled), (file for file in media if file not in titled))


def _with_layers(listing: Listing, layers: Companions, dataset: DatasetConfig) -> Listing:
    """Give each candidate its layers. Raises ConfigError when nobody has any."""
    kept: list[Candidate] = []
    skipped = list(listing.skipped)
    for candidate in listing.candidates:
        targets = layers.by_stem.get(candidate.path.stem, ())
        if targets:
            kept.append(replace(candidate, targets=targets))
        else:
            reason = f"has no layers: expected {candidate.path.stem}_0.png, {candidate.path.stem}_1.png, ..."
            skipped.append(Skipped(path=candidate.path, reason=reason, group="have no layers"))
    if listing.candidates and not kept:
        raise ConfigError(
            f"{dataset.title}: multiple_target is true, but no picture has layers. Name them like "
            f"{listing.candidates[0].path.stem}_0.png, without captions, or set multiple_target = false."
        )
    return replace(
        listing,
        candidates=tuple(kept),
        skipped=tuple(skipped),
        notes=(*listing.notes, *layer_notes([candidate.targets for candidate in kept])),
    )


def layer_notes(targets: Sequence[Sequence[Path]]) -> list[str]:
    """A note when items have different numbers of layers, which is often a forgotten file."""
    counts = Counter(len(files) for files in targets)
    if len(counts) < 2:
        return []
    parts = ", ".join(f"{number} with {layers}" for layers, number in sorted(counts.items()))
    return [f"Items have different numbers of layers ({parts}); they never share a batch."]


def _with_controls(listing: Listing, dataset: DatasetConfig, folder: Path) -> Listing:
    notes = list(listing.notes)
    controls: dict[Path, tuple[Path, ...]]
    if dataset.is_video:
        found = control_videos([candidate.path for candidate in listing.candidates], folder)
        controls = {path: (control,) for path, control in found.items()}
    else:
        named = numbered((candidate.path.stem for candidate in listing.candidates), pictures_in(folder))
        controls = {each.path: named.by_stem.get(each.path.stem, ()) for each in listing.candidates}
        for files, why in ((named.odd, "end in no number"), (named.free, "belong to no picture")):
            if files:
                notes.append(
                    f"{len(files)} files in {folder} {why} and are not used (first: {files[0].name})."
                )
    kept, missing = [], []
    for candidate in listing.candidates:
        own = controls.get(candidate.path, ())
        if own:
            kept.append(replace(candidate, controls=own))
        else:
            reason = f"has no control: expected {candidate.path.name} in {folder}."
            missing.append(Skipped(path=candidate.path, reason=reason, group=NO_CONTROL))
    return replace(listing, candidates=tuple(kept), skipped=(*listing.skipped, *missing), notes=tuple(notes))
