"""Files that belong to a picture or video by name: numbered control pictures, layers, control videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from musubi_core.data.picture_file import is_picture
from musubi_core.data.video_file import is_video
from musubi_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """by_stem: each owner's files in order. odd: files whose suffix is no number. free: the rest."""

    by_stem: Mapping[str, tuple[Path, ...]]
    odd: tuple[Path, ...] = ()
    free: tuple[Path, ...] = ()


def numbered(stems: Iterable[str], files: Iterable[Path]) -> Companions:
    """Files named `<stem>.ext` or `<stem>_<number>.ext`, ordered: the exact name first, then by number.

    The longest stem that fits owns a file, so a_1 keeps a_1_0.png although its name also begins with "a_".
    """
    known = set(stems)
    own: dict[str, list[tuple[int, Path]]] = {stem: [] for stem in known}
    odd: list[Path] = []
    free: list[Path] = []
    for file in sorted(files):
        owner = _owner(file.stem, known)
        suffix = file.stem[len(owner) + 1 :] if owner is not None else ""
        if owner is None:
            free.append(file)
        elif suffix and not suffix.isdecimal():
            odd.append(file)
        else:
            own[owner].append((int(suffix) if suffix else -1, file))
    ordered = {stem: tuple(file for _, file in sorted(pairs)) for stem, pairs in own.items()}
    return Companions(by_stem=ordered, odd=tuple(odd), free=tuple(free))


def _owner(name: str, stems: set[str]) -> str | None:
    """The longest stem that `name` equals or continues after an underscore."""
    while name not in stems:
        name, underscore, _ = name.rpartition("_")
        if not underscore:
            return None
    return name


def entries_of(folder: Path) -> list[Path]:
    """Everything directly in a folder, sorted. Raises ConfigError when it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be listed: {error.strerror}. Check its permissions.") from None


def control_videos(media: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The control of each video that has one: the same file name, a folder named by the stem, or the stem
    with any video extension; in this order."""
    entries = entries_of(folder)
    names = {entry.name: entry for entry in entries if entry.is_file()}
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    stems = {entry.stem: entry for entry in reversed(entries) if is_video(entry) and entry.is_file()}
    choices = {path: names.get(path.name) or folders.get(path.stem) or stems.get(path.stem) for path in media}
    return {path: control for path, control in choices.items() if control is not None}


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted."""
    return [file for file in entries_of(folder) if is_picture(file) and file.is_file()]
