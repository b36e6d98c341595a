"""Captions: where they are and what they say."""

from __future__ import annotations

from pathlib import Path

from musubi_core.errors import BadFileError


def caption_path(media: Path, extension: str) -> Path:
    """The caption file of a picture or video: its name without the last extension, then `extension`."""
    return media.with_name(media.stem + extension)


def read_caption(path: Path) -> str:
    """The whole text, stripped; several lines stay. Raises BadFileError: missing, unreadable, not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig").strip()
    except FileNotFoundError:
        raise BadFileError(f"no caption: expected {path.name} beside it.") from None
    except UnicodeDecodeError as error:
        raise BadFileError(
            f"caption {path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from None
    except OSError as error:
        raise BadFileError(f"caption {path.name} cannot be read: {error.strerror}.") from None
