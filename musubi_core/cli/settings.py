"""What the user asked for: the command line over the config file, sorted to the dataclasses that want it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from musubi_core.cli.flags import Flag
from musubi_core.config import build, coerce, options_of, read_toml, unknown_key
from musubi_core.errors import ConfigError

T = TypeVar("T")
COMMAND_LINE = "the command line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value as TOML would hold it, and where the user wrote it (named in errors)."""

    value: Any
    where: str


Settings = Mapping[str, Setting]


def from_command_line(values: Mapping[str, Any]) -> dict[str, Setting]:
    return {name: Setting(value=value, where=COMMAND_LINE) for name, value in values.items()}


def from_config_file(path: Path) -> dict[str, Setting]:
    """The settings in a TOML file, its tables flattened; `.toml` may be left out of the path.

    Raises ConfigError for a file that cannot be read and for a name that stands in two tables.
    """
    if path.suffix.lower() != ".toml":
        path = path.with_name(path.name + ".toml")
    found: dict[str, tuple[str, Any]] = {}
    _flatten(read_toml(path), "", found, path)
    return {name: Setting(value=value, where=str(path)) for name, (_, value) in found.items()}


def _flatten(table: Mapping[str, Any], title: str, found: dict[str, tuple[str, Any]], path: Path) -> None:
    for name, value in table.items():
        if isinstance(value, dict):
            _flatten(value, f"{title}.{name}" if title else name, found, path)
        elif name in found:
            places = " and ".join(f"[{place}]" if place else "the top" for place in (found[name][0], title))
            raise ConfigError(f"{path}: {name} is set twice, in {places}. Keep one of them.")
        else:
            found[name] = (title, value)


def resolve_names(settings: Settings, flags: Mapping[str, Flag]) -> dict[str, Setting]:
    """The settings under the names of their flags, older names replaced.

    Raises ConfigError with the nearest names when a setting belongs to no flag, and when an option is given
    under its old and its new name.
    """
    names = {name: flag.info.name for flag in flags.values() for name in (flag.info.name, *flag.info.aliases)}
    resolved: dict[str, Setting] = {}
    for name, setting in settings.items():
        if name not in names:
            raise unknown_key(name, names, where=setting.where)
        if names[name] in resolved:
            raise ConfigError(f"{setting.where}: {name} is another name of {names[name]}; keep one of them.")
        resolved[names[name]] = setting
    return resolved


def check_architecture(settings: Settings, flags: Mapping[str, Flag], architecture: str) -> None:
    """Raises ConfigError when a setting belongs to other architectures than the chosen one."""
    for name, setting in settings.items():
        flag = flags[name]
        if flag.architectures and architecture not in flag.architectures:
            raise ConfigError(
                f"{setting.where}: {name} is an option of {', '.join(flag.architectures)}, but this run uses "
                f"{architecture}. Remove it, or choose another --architecture."
            )


def config_of(cls: type[T], settings: Settings) -> T:
    """An instance of `cls` from those settings that it declares; the rest belongs to other classes.

    settings: under resolved names. Raises ConfigError that names the file or the command line, for a wrong
    value and for a missing one.
    """
    mine: dict[str, Any] = {}
    for info in options_of(typing.cast(Any, cls)):
        if info.name in settings:
            setting = settings[info.name]
            mine[info.name] = coerce(info, setting.value, where=setting.where)
    return build(cls, mine, where=COMMAND_LINE)
