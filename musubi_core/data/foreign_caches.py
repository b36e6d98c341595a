"""Caches that musubi-tuner made: there is no manifest, so the file names must tell (reference 3.6)."""

from __future__ import annotations

import re
from pathlib import Path

from musubi_core.data.manifest import Entry

_NAME = re.compile(
    r"(?P<stem>.+?)(?:_(?P<start>\d{5,})-(?P<frames>\d{3,})(?:-\d{4,})?)?_(?P<width>\d{4,})x(?P<height>\d{4,})"
    r"_(?P<short>[^_]+)\.safetensors"
)


def find_foreign(folder: Path, short: str) -> dict[str, Entry]:
    """Latent caches of an architecture by file name; not, for example, a LoRA `style_hv.safetensors`."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob(f"*_{short}.safetensors")) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match is not None and match["short"] == short:
            found[path.name] = _entry(path, match)
    return found


def other_architectures(folder: Path, short: str) -> list[str]:
    """Suffixes of latent caches in a folder that belong to other architectures."""
    names = [path.name for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    found = {match["short"] for name in names if (match := _NAME.fullmatch(name))}
    return sorted(found - {short, "te"})


def _entry(path: Path, match: re.Match[str]) -> Entry:
    """A picture's name holds its own size, a clip's that of its bucket."""
    video = match["start"] is not None
    return Entry(
        stem=match["stem"],
        source=str(path),
        is_video=video,
        bucket=(int(match["width"]), int(match["height"])) if video else (0, 0),
        start=int(match["start"]) if video else 0,
        frames=int(match["frames"]) if video else 1,
    )
