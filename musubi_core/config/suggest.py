"""Near misses for names that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from musubi_core.errors import ConfigError

_FITS_IN_A_MESSAGE = 40  # names


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to `count` known names that look like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def unknown_key(name: str, known: Iterable[str], *, where: str, kind: str = "option") -> ConfigError:
    """The error for a name that is not one of `known`, with what was probably meant."""
    known = list(known)
    close = nearest(name, known)
    if close:
        hint = f"Did you mean {' or '.join(close)}?"
    elif len(known) > _FITS_IN_A_MESSAGE:
        hint = f"None of the {len(known)} known ones looks like it."
    else:
        hint = f"Known: {', '.join(sorted(known))}."
    return ConfigError(f"{where}: unknown {kind} {name!r}. {hint}")
