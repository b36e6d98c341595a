"""The options of one job, gathered from the dataclasses that own them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from musubi_core.config import OptionInfo, options_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option as a job shows it. architectures: the ones that know it, empty for all."""

    info: OptionInfo
    architectures: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The heading under which help and docs show it."""
        if self.architectures:
            return f"only for {', '.join(self.architectures)}"
        return self.info.section.partition(".")[0] or "general"


def gather(common: tuple[type, ...], of_architecture: Mapping[str, type]) -> dict[str, Flag]:
    """The flags of a job by name: those of its own config classes, then those of each architecture.

    A name that several classes declare is one flag. Raises TypeError when they disagree about its type:
    one flag cannot be both, so that is a slip of the programmer.
    """
    flags: dict[str, Flag] = {}
    for cls in common:
        for info in options_of(cls):
            _add(flags, Flag(info=info, architectures=info.arch))
    for architecture, cls in of_architecture.items():
        for info in options_of(cls):
            _add(flags, Flag(info=info, architectures=(architecture,)))
    return flags


def _add(flags: dict[str, Flag], new: Flag) -> None:
    name = new.info.name
    old = flags.get(name)
    if old is None:
        flags[name] = new
        return
    if _shape(old.info) != _shape(new.info):
        raise TypeError(f"option {name} is declared twice, as {_shape(old.info)} and as {_shape(new.info)}")
    if old.architectures:
        known_to = (*old.architectures, *new.architectures) if new.architectures else ()
        flags[name] = dataclasses.replace(old, architectures=known_to)


def _shape(info: OptionInfo) -> tuple[str, bool, bool]:
    return info.type.__name__, info.many, info.parse is not None


def as_toml_would(info: OptionInfo, raw: Any) -> Any:
    """Texts of the command line as the values a TOML file would hold: "16" -> 16 where numbers are meant.

    A text that is no number stays a text; `config.coerce` then says what was expected.
    """
    if isinstance(raw, list):
        return [as_toml_would(info, item) for item in raw]
    if not isinstance(raw, str) or info.parse is not None or info.type not in (int, float):
        return raw
    for number in (int, float):
        try:
            return number(raw)
        except ValueError:
            continue
    return raw
