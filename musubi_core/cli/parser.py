"""From the words of a command line to values by option name. argparse is seen in this file only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from musubi_core.cli.flags import Flag, as_toml_would
from musubi_core.cli.later import LaterOption
from musubi_core.config import unknown_key
from musubi_core.errors import ConfigError

_SHORT = 40  # characters of choices that stand in place of a value

SWITCHES = (
    "Every switch --x has a counterpart --no_x, which wins over a config file. "
    "Dashes and underscores in option names mean the same."
)


def parse(
    job: str,
    words: Sequence[str],
    flags: Mapping[str, Flag],
    *,
    description: str = "",
    positional: str = "",
    later: Sequence[LaterOption] = (),
) -> dict[str, Any]:
    """The options that `words` give, by name, as the values a TOML file would hold.

    What is not given is absent. positional: the option that needs no flag.
    Raises ConfigError for an unknown option or a missing value, and SystemExit(0) after --help.
    """
    parser = _Parser(
        prog=f"musubi {job}",
        usage=" ".join(filter(None, ("musubi", job, positional, "[options]"))),
        description=description,
        epilog=SWITCHES,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    groups: dict[str, Any] = {}
    for flag in flags.values():
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        _add_flag(groups[flag.group], flag, positional=flag.info.name == positional)
    for option in later:
        _add_later(parser, option)

    found, extra = parser.parse_known_args([_underscored(word) for word in words])
    if extra:
        known = [f"--{name}" for name in (*flags, *(option.name for option in later))]
        raise _not_understood(job, extra, known)
    values = vars(found)
    return {
        name: as_toml_would(flags[name].info, value) if name in flags else value
        for name, value in values.items()
    }


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. `{self.prog} --help` lists the options.")


def _add_flag(group: Any, flag: Flag, *, positional: bool) -> None:
    info = flag.info
    text = help_text(flag).replace("%", "%%")
    if positional:
        many = "+" if info.many else None
        group.add_argument(info.name, nargs=many, default=argparse.SUPPRESS, help=text)
        return
    for name in (info.name, *info.aliases):
        shown = text if name == info.name else argparse.SUPPRESS
        if info.type is bool and not info.many:
            _add_switch(group, f"--{name}", info.name, True, shown)
            _add_switch(group, f"--no_{name}", info.name, False, argparse.SUPPRESS)
        else:
            group.add_argument(
                f"--{name}",
                dest=info.name,
                nargs="*" if info.many else None,
                metavar=metavar(flag),
                default=argparse.SUPPRESS,
                help=shown,
            )


def _add_switch(group: Any, word: str, name: str, value: bool, text: str) -> None:
    group.add_argument(
        word, dest=name, action="store_const", const=value, default=argparse.SUPPRESS, help=text
    )


def _add_later(parser: _Parser, option: LaterOption) -> None:
    if option.values is None:
        _add_switch(parser, f"--{option.name}", option.name, True, argparse.SUPPRESS)
    else:
        parser.add_argument(
            f"--{option.name}", nargs=option.values or None, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def metavar(flag: Flag) -> str:
    """What stands for the value in help: "N", "PATH", or the choices when they are short."""
    choices = "|".join(flag.info.choices)
    if 0 < len(choices) <= _SHORT:
        return choices
    return {int: "N", float: "X", Path: "PATH"}.get(flag.info.type, "TEXT")


def default_text(flag: Flag) -> str:
    """The default as a user would type it; "" when there is none to show."""
    default = flag.info.default
    if flag.info.required or default is None or default is False or default == ():
        return ""
    if isinstance(default, bool):
        return "on"
    if isinstance(default, float):
        return f"{default:g}"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def help_text(flag: Flag) -> str:
    """The option's help with its choices and default."""
    info, text = flag.info, flag.info.help
    if len("|".join(info.choices)) > _SHORT:
        text += f" One of {', '.join(info.choices)}."
    default = default_text(flag)
    return f"{text} (required)" if info.required else f"{text} (default: {default})" if default else text


def _underscored(word: str) -> str:
    """--blocks-to-swap=8 -> --blocks_to_swap=8; other words, and texts with blanks, stay as they are."""
    name, sign, value = word.partition("=")
    if not name.startswith("--") or " " in name or name == "--":
        return word
    return f"--{name[2:].replace('-', '_')}{sign}{value}"


def _not_understood(job: str, extra: Sequence[str], known: Sequence[str]) -> ConfigError:
    for word in extra:
        if word.startswith("-"):
            return unknown_key(word.partition("=")[0], known, where=f"musubi {job}")
    return ConfigError(
        f"musubi {job}: {extra[0]!r} belongs to no option. "
        "A text with spaces needs quotes; a list takes all its values after one flag."
    )
