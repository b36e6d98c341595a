"""What recognising a network by the header of its file takes in every architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from musubi_core.errors import ConfigError

MOST_BLOCKS = 256  # a header that lies must not make us build a network without end


def block_count(names: Iterable[str], start: str) -> int:
    """How many blocks have a name that starts with `start` and a number.

    Raises ConfigError for more than any network has.
    """
    count = len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})
    if count > MOST_BLOCKS:
        raise ConfigError(f"It names {count} {start[:-1]}; at most {MOST_BLOCKS} are believed.")
    return count


def other_kind(names: Sequence[str], prefixes: Sequence[str], kinds: Sequence[tuple[str, str]]) -> str:
    """A sentence that says what a file with tensors of these names seems to hold.

    kinds: (pattern that some name matches, what it then is), the first that fits is reported.
    """
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in names)), "")
    bare = [name.removeprefix(prefix) for name in names]
    for pattern, kind in kinds:
        if any(re.search(pattern, name) for name in bare):
            return f"it holds {kind}."
    return f"none of its {len(names)} tensors is known (first: {', '.join(names[:3]) or 'none'})."


def wrong_rank(shapes: Mapping[str, tuple[int, ...]], ranks: Mapping[str, int]) -> str:
    """The end of a sentence about the first tensor that is empty or has not that many axes; "" if none."""
    for name, rank in ranks.items():
        shape = shapes.get(name, ())
        if len(shape) != rank or 0 in shape:
            return f"{name} has shape {list(shape)}; expected {rank} axes."
    return ""
