"""One option, declared once: a field of a frozen dataclass.

From the declaration come the command-line flag, the key in a config file, the node widget, the row in the
docs and the entry in a LoRA's metadata. Nothing else in the program repeats a default or a limit.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from musubi_core.config.suggest import unknown_key
from musubi_core.errors import ConfigError

T = TypeVar("T")
_KEY = "musubi_option"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    help: str
    ge: float | None
    le: float | None
    choices: tuple[str, ...]
    advanced: bool
    arch: tuple[str, ...]
    parse: Callable[[str], Any] | None
    aliases: tuple[str, ...]


def option(
    default: Any = MISSING,
    *,
    help: str,
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
    advanced: bool = False,
    arch: tuple[str, ...] = (),
    parse: Callable[[str], Any] | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is also an option.

    default: MISSING makes the option required. ge, le: inclusive limits of numbers (each number of a list).
    choices: the only accepted texts. advanced: hidden behind "more" in nodes. arch: architectures that know
    it; empty means all. parse: turns text such as "10%" into the value; it raises ValueError with the reason.
    aliases: older names accepted in files and on the command line.
    """
    declared = _Declared(
        help=help,
        ge=ge,
        le=le,
        choices=choices,
        advanced=advanced,
        arch=arch,
        parse=parse,
        aliases=aliases,
    )
    return dataclasses.field(default=default, metadata={_KEY: declared})


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionInfo:
    """What the edges know about one option."""

    name: str
    type: type  # of one element: bool, int, float, str or Path
    many: bool  # a tuple of elements
    optional: bool  # None is a value, meaning "not set"
    default: Any  # dataclasses.MISSING when required
    help: str
    ge: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    arch: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    aliases: tuple[str, ...] = ()
    section: str = ""  # attribute path of the dataclass that owns it, "" for the outermost

    @property
    def required(self) -> bool:
        return self.default is MISSING


@cache
def options_of(cls: type) -> tuple[OptionInfo, ...]:
    """The options of one dataclass, in order of declaration, nested dataclasses flattened in place.

    Raises TypeError for a field of a type that no edge could show: that is a slip of the programmer.
    """
    found: list[OptionInfo] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            for inner in options_of(typing.cast(type, hint)):
                section = f"{field.name}.{inner.section}" if inner.section else field.name
                found.append(dataclasses.replace(inner, section=section))
            continue
        declared = field.metadata.get(_KEY)
        if declared is None:
            continue
        element, many, optional = _shape_of(hint, f"{cls.__name__}.{field.name}")
        found.append(
            OptionInfo(
                name=field.name,
                type=element,
                many=many,
                optional=optional,
                default=field.default,
                **{slot: getattr(declared, slot) for slot in declared.__slots__},
            )
        )
    return tuple(found)


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a config dataclass from a flat mapping of option names (aliases accepted).

    values: Python values as TOML, JSON, argparse or a node give them; an int is accepted for a float, a text
    for a Path. where: named in errors, e.g. "train.toml" or "the command line".
    Raises ConfigError for an unknown name, a wrong type, a value outside its limits, a missing required one.
    """
    infos = options_of(typing.cast(Any, cls))
    by_name = {name: info for info in infos for name in (info.name, *info.aliases)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        info = by_name.get(name)
        if info is None:
            raise unknown_key(name, by_name, where=where)
        if info.name in given and name != info.name:
            continue  # the new name wins over its alias
        given[info.name] = coerce(info, value, where=where)
    return _assemble(cls, given, where)


def _assemble(cls: type[T], given: Mapping[str, Any], where: str) -> T:
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(typing.cast(Any, cls)):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            arguments[field.name] = _assemble(typing.cast(type, hint), given, where)
        elif field.name in given:
            arguments[field.name] = given[field.name]
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}: option {field.name} is missing. {_help_of(field)}")
    return cls(**arguments)


def values_of(config: Any) -> dict[str, Any]:
    """The options of a config dataclass as one flat dictionary, nested dataclasses flattened."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update(values_of(value))
        elif _KEY in field.metadata:
            values[field.name] = value
    return values


def coerce(info: OptionInfo, value: Any, *, where: str) -> Any:
    """The value as the option's own type, checked against its limits. Raises ConfigError."""
    if value is None:
        if info.optional:
            return None
        raise ConfigError(f"{where}: {info.name} has no value; expected {_expected(info)}.")
    if info.many:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce_one(info, item, where) for item in items)
    return _coerce_one(info, value, where)


def _coerce_one(info: OptionInfo, value: Any, where: str) -> Any:
    result = value
    if info.parse is not None and isinstance(value, str):
        try:
            result = info.parse(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {info.name} = {value!r}: {error}.") from None
    elif info.type is float and isinstance(value, int) and not isinstance(value, bool):
        result = float(value)
    elif info.type is Path and isinstance(value, str):
        result = Path(value)
    elif info.type is int and isinstance(value, float) and value.is_integer():
        result = int(value)
    elif not isinstance(value, info.type) or (isinstance(value, bool) and info.type is not bool):
        raise ConfigError(f"{where}: {info.name} = {value!r}; expected {_expected(info)}.")
    if info.choices and result not in info.choices:
        raise ConfigError(f"{where}: {info.name} = {value!r}; choose one of {', '.join(info.choices)}.")
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        if result != result:
            raise ConfigError(f"{where}: {info.name} is not a number; expected {_expected(info)}.")
        if (info.ge is not None and result < info.ge) or (info.le is not None and result > info.le):
            raise ConfigError(f"{where}: {info.name} = {value!r}; expected {_expected(info)}.")
    return result


def _expected(info: OptionInfo) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    text = words[info.type]
    if info.ge is not None and info.le is not None:
        text += f" from {info.ge:g} to {info.le:g}"
    elif info.ge is not None:
        text += f" of at least {info.ge:g}"
    elif info.le is not None:
        text += f" of at most {info.le:g}"
    return f"a list, each {text}" if info.many else text


def _shape_of(hint: Any, owner: str) -> tuple[type, bool, bool]:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        optional = len(inner) != len(typing.get_args(hint))
        if set(inner) == {int, float}:  # "steps or a fraction"
            return float, False, optional
        if len(inner) != 1:
            raise TypeError(f"{owner}: no edge can show {hint}")
        hint = inner[0]
    many = typing.get_origin(hint) is tuple
    if many:
        hint = typing.get_args(hint)[0]
    if hint not in (bool, int, float, str, Path):
        raise TypeError(f"{owner}: no edge can show {hint}")
    return hint, many, optional


def _help_of(field: dataclasses.Field[Any]) -> str:
    declared = field.metadata.get(_KEY)
    return declared.help if declared else ""
