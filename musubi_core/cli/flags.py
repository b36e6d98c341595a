"""The options of one job, gathered from the dataclasses that own them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_core.config import OptionInfo, options_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option as a job shows it.

    architectures: the ones that know it, empty for all. own: what each of them says of it, by its name.
    """

    info: OptionInfo
    architectures: tuple[str, ...] = ()
    own: Mapping[str, OptionInfo] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The heading under which help and docs show it."""
        if self.architectures:
            return f"only for {', '.join(self.architectures)}"
        return self.info.section.partition(".")[0] or "general"


def gather(
    common: tuple[type, ...],
    of_architecture: Mapping[str, type],
    hidden: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Flag]:
    """The flags of a job by name: those of its own config classes, then those of each architecture.

    hidden: for each architecture, options of its class that the job has no use for. A name that several
    classes declare is one flag. Raises TypeError when they disagree about its type: one flag cannot be both,
    so that is a slip of the programmer.
    """
    hidden = hidden or {}
    flags: dict[str, Flag] = {}
    for cls in common:
        for info in options_of(cls):
            _add(flags, Flag(info=info, architectures=info.arch))
    for architecture, cls in of_architecture.items():
        for info in options_of(cls):
            if info.name not in hidden.get(architecture, ()):
                _add(flags, Flag(info=info, architectures=(architecture,), own={architecture: info}))
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
        both = tuple(dict.fromkeys((*old.architectures, *new.architectures)))
        known_to = both if new.architectures else ()
        # Where one architecture has it in several classes, the first speaks.
        own = {**old.own, **{name: info for name, info in new.own.items() if name not in old.own}}
        flags[name] = Flag(info=_together(own), architectures=known_to, own=own)


def _together(own: Mapping[str, OptionInfo]) -> OptionInfo:
    """One declaration for help and docs; where architectures differ, each has its say.

    Values are checked against the architecture's own declaration, never against this one.
    """
    first, *others = own.values()
    one_default = all(info.default == first.default for info in others)
    said: dict[str, list[str]] = {}
    for architecture, info in own.items():
        text = info.help if one_default else f"{info.help} Default: {info.default}."
        said.setdefault(text, []).append(architecture)
    if len(said) == 1:
        return first
    text = " ".join(f"{', '.join(names)}: {text}" for text, names in said.items())
    return dataclasses.replace(first, help=text, default=first.default if one_default else None)


def _shape(info: OptionInfo) -> tuple[str, bool, bool]:
    return info.type.__name__, info.many, info.parse is not None


def as_toml_would(info: OptionInfo, raw: Any) -> Any:
    """Texts of the command line as the values a TOML file would hold: "16" -> 16 where numbers are meant.

    A text that is no number stays a text; `config.coerce` then says what was expected.
    """
    if isinstance(raw, list):
        items = [as_toml_would(info, item) for item in raw]
        return [path for item in items for path in _matching(item)] if info.type is Path else items
    if not isinstance(raw, str) or info.parse is not None or info.type not in (int, float):
        return raw
    for number in (int, float):
        try:
            return number(raw)
        except ValueError:
            continue
    return raw


def _matching(path: str) -> list[str]:
    """The files that a pattern like "cat-*.safetensors" means: on Windows the shell leaves it to the program.

    A name without a match stays, for the message about a missing file.
    """
    pattern = Path(path)
    if not any(sign in pattern.name for sign in "*?") or pattern.exists():
        return [path]
    found = pattern.parent.glob(pattern.name.replace("[", "[[]"))  # brackets are letters of names here
    return sorted(map(str, found)) or [path]
