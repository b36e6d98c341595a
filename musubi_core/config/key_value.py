"""`key=value` arguments: network_args, optimizer_args, lr_scheduler_args."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from musubi_core.errors import ConfigError


def parse_key_values(items: Iterable[str], *, where: str) -> dict[str, Any]:
    """["betas=0.9,0.95", "verbose=True"] -> {"betas": (0.9, 0.95), "verbose": True}.

    Split at the first "=", so a regular expression may contain more of them. A value is read as a Python
    literal (never evaluated); what is no literal stays text. Raises ConfigError for an item without "=",
    an empty key, or a key given twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        key = key.strip()
        if not sign or not key.isidentifier():
            raise ConfigError(f"{where}: {item!r} is not of the form key=value, e.g. weight_decay=0.01.")
        if key in found:
            raise ConfigError(f"{where}: {key} is given twice.")
        found[key] = _literal(text.strip())
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
