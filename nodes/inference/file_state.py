"""Whether a file is still the same, for ComfyUI's cache of results."""

from __future__ import annotations

from pathlib import Path


def state_of(path: Path) -> tuple[str, int, int]:
    """Changes when the file does. Raises OSError."""
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns
