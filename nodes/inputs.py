"""From the declaration of an option to an input of a node, and back.

An option is declared once, in the core. Here it becomes a widget with its default, limits, choices and
tooltip; `values_from` turns what the widgets hold into what the core's `build` takes. Options that are files
need a `Chooser`, because a graph must not name any path it likes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from comfy_api.latest import io

from musubi_core.config import ConfigError, OptionInfo, build, options_of

T = TypeVar("T")
NOT_SET = "not set"  # the choice that means None
MOST_INT = 2**31 - 1  # for options without an upper limit; JavaScript counts exactly up to 2**53
MOST_SEED = 2**53 - 1
MOST_FLOAT = 1e9


class Chooser(Protocol):
    """How a graph names a file or folder, see `files`."""

    def input(self, info: OptionInfo) -> Any:
        """The input that offers what may be chosen."""
        ...

    def value(self, text: str, info: OptionInfo) -> Any:
        """The value behind a choice, None for none. Raises ConfigError for what may not be chosen."""
        ...


Choosers = Mapping[str, Chooser]


def inputs_of(
    cls: type,
    *,
    skip: Collection[str] = (),
    only: Collection[str] = (),
    choosers: Choosers | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Any]:
    """One input for each option of a config dataclass, in order of declaration.

    skip, only: names of options to leave out, or to keep. choosers: for options that are files, by name.
    defaults: values that a node starts with instead of the option's own. Raises TypeError for a file option
    without chooser: that is a slip of the programmer.
    """
    chosen = [info for info in options_of(cls) if info.name not in skip and (not only or info.name in only)]
    inputs = []
    for info in chosen:
        if choosers and info.name in choosers:
            inputs.append(choosers[info.name].input(info))
        elif info.type is Path:
            raise TypeError(f"{cls.__name__}.{info.name} is a path and has no chooser")
        else:
            usual = None if info.required else info.default
            inputs.append(_widget(info, (defaults or {}).get(info.name, usual)))
    return inputs


def values_from(
    cls: type, given: Mapping[str, Any], *, where: str, choosers: Choosers | None = None
) -> dict[str, Any]:
    """What the widgets of a node say about the options of `cls`, by name, as `build` takes it.

    given: inputs of the node; those of other classes are ignored, and None (a link that is not known yet) is
    left out. Raises ConfigError for text that is no list of numbers, and for a file that may not be chosen.
    """
    values: dict[str, Any] = {}
    for info in options_of(cls):
        value = given.get(info.name)
        if value is None:
            continue
        if choosers and info.name in choosers:
            values[info.name] = choosers[info.name].value(str(value), info)
        else:
            values[info.name] = _value(info, value, where)
    return values


def config_from(
    cls: type[T],
    given: Mapping[str, Any],
    *,
    where: str,
    choosers: Choosers | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> T:
    """The config dataclass that the inputs of a node describe.

    where: the node, named in errors. fixed: values that come from elsewhere and win. Raises ConfigError.
    """
    return build(
        cls, {**values_from(cls, given, where=where, choosers=choosers), **(fixed or {})}, where=where
    )


def more(info: OptionInfo) -> dict[str, Any]:
    """Arguments that every input gets from its option."""
    return {
        "tooltip": info.help + _remark(info),
        "optional": not info.required,
        # not the keyword `advanced`, which older versions of ComfyUI do not know
        "extra_dict": {"advanced": True} if info.advanced else {},
    }


def unset_value(info: OptionInfo) -> int:
    """The number that means None: just outside of the limits."""
    return 0 if info.ge is not None and info.ge > 0 else -1


def _widget(info: OptionInfo, default: Any) -> Any:
    """The input of an option that is no file."""
    if info.type is bool:
        return io.Boolean.Input(info.name, default=bool(default), **more(info))
    if info.choices and not info.many:
        options = [NOT_SET, *info.choices] if info.optional else list(info.choices)
        return io.Combo.Input(info.name, options=options, default=default or options[0], **more(info))
    if _is_number(info):
        return _number(info, default)
    return io.String.Input(
        info.name,
        default=_text(info, default),
        multiline=info.many and info.type is str,
        **more(info),
    )


def _is_number(info: OptionInfo) -> bool:
    """Whether a number widget can hold it. An optional number without a limit has no value for "not set"."""
    plain = info.type in (int, float) and not info.many and info.parse is None
    return plain and not (info.optional and info.ge is None)


def _number(info: OptionInfo, default: Any) -> Any:
    low, high = info.ge, info.le
    if info.optional:
        low = float(unset_value(info))
        default = low if default is None else default
    if info.type is int:
        most = MOST_SEED if info.le and info.le > MOST_INT else MOST_INT
        return io.Int.Input(
            info.name,
            default=int(default or 0),
            min=-MOST_INT if low is None else int(low),
            max=most if high is None else min(int(high), most),
            # A page would choose another seed after each queueing, and a cancelled run could not go on.
            control_after_generate=False,
            **more(info),
        )
    return io.Float.Input(
        info.name,
        default=float(default or 0),
        min=-MOST_FLOAT if low is None else low,
        max=MOST_FLOAT if high is None else high,
        step=_step(info),
        round=False,  # a learning rate of 3e-6 stays what it is
        **more(info),
    )


def _step(info: OptionInfo) -> float:
    """Two digits finer than the default or the lowest value, a hundredth at most."""
    sizes = [abs(each) for each in (info.default, info.ge) if isinstance(each, (int, float)) and each]
    digits = math.floor(math.log10(min(sizes, default=1.0)))
    return float(f"1e{min(-2, digits - 2)}")


def _text(info: OptionInfo, value: Any) -> str:
    """A value as the text widget shows it. Fractions stay short, because people edit them."""
    if value is None or not isinstance(value, (bool, int, float, str, tuple)):
        return ""
    if isinstance(value, tuple):
        separator = "\n" if info.type is str else " "
        return separator.join(_text(info, each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(info: OptionInfo, value: Any, where: str) -> Any:
    """What one widget holds, as the option's own type or nearly so: `build` checks it."""
    if info.optional and (value == NOT_SET or value == ""):
        return None
    if _is_number(info):
        return None if info.optional and value == unset_value(info) else value
    if isinstance(value, str) and info.many:
        return _many(info, value, where)
    if isinstance(value, str) and info.type in (int, float) and info.parse is None:
        return _parsed(info, value, where)
    return value


def _many(info: OptionInfo, text: str, where: str) -> Any:
    """The elements of a list that is written as text."""
    if info.type is str:
        parts = [line.strip() for line in text.splitlines() if line.strip()]
        return tuple(parts)
    return tuple(_parsed(info, word, where) for word in re.split(r"[\s,;x]+", text.strip()) if word)


def _parsed(info: OptionInfo, word: str, where: str) -> int | float:
    try:
        return int(word) if info.type is int else float(word)
    except ValueError:
        kind = "whole numbers" if info.type is int else "numbers"
        example = _text(info, info.default) if info.many and info.default else "1"
        raise ConfigError(
            f"{where}: {info.name}: {word!r} is not one of {kind}; write e.g. {example}."
        ) from None


def _remark(info: OptionInfo) -> str:
    """How the widget is to be filled in, where that is not obvious."""
    if info.many:
        return " One per line." if info.type is str else " Separated by spaces."
    if not info.optional or info.choices or info.type is bool:
        return ""
    return f" {unset_value(info)}: not set." if _is_number(info) else " Empty: not set."
