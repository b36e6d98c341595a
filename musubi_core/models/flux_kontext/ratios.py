"""Which measured magnitude ratios fit a picture: there is one released network."""

from __future__ import annotations

from typing import Any

from musubi_core.models.spec import Conditioning


def ratios_for(options: Any, conditioning: Conditioning, size: tuple[int, int]) -> str:
    """Their name, whatever the size and with any number of references."""
    return "dev"
