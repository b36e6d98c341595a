"""Captions as Wan's own programs clean them before they are cut into tokens."""

from __future__ import annotations

import html
import re
import unicodedata

_SINGLE_QUOTES, _DOUBLE_QUOTES = re.compile("[ʼ‘’‚‛]"), re.compile("[“”„‟]")


def clean(caption: str) -> str:
    """Straight quotes, composed letters, HTML entities resolved (twice), single spaces, none at the ends.

    The official programs call the library ftfy first. Of what it does to text that is not broken, only quotes
    and composition reach the network; its repair of wrongly decoded text is left out, and it is not used even
    where it is installed, so that equal captions give equal caches on every machine.
    """
    text = _DOUBLE_QUOTES.sub('"', _SINGLE_QUOTES.sub("'", caption))
    text = unicodedata.normalize("NFC", text)
    return " ".join(html.unescape(html.unescape(text)).split())
