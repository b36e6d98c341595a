"""Prompts as users write them: a line with flags, or a file of prompts (.txt, .toml or .json).

One parser for `generate` and for previews while training. The flags and keys are musubi-tuner's:

    A cat walks on the grass. --w 832 --h 480 --f 81 --d 1234 --s 30 --n blurry, dark

Reads and converts only; what suits a model is settled later, by `settings.settle_prompt`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.config import read_json, read_toml, unknown_key
from musubi_core.errors import ConfigError
from musubi_core.generation.prompt import Prompt

ENDINGS = (".txt", ".toml", ".json")
COMMENT = "#"  # as the first letter of a line
# A flag begins behind a blank, so that "sci--fi" and "a - b" are words of the prompt, and so is "--" alone.
_FLAG = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")


def _whole(text: str) -> int:
    value = float(text)
    if not value.is_integer():
        raise ValueError
    return int(value)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = _not_negative(text)
    if value > 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    return _whole(str(_not_negative(text)))


def _unquoted(text: str) -> Path:
    """A path may stand in quotes, as file managers copy it."""
    inside = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    if not inside:
        raise ValueError
    return Path(inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One thing that a prompt may say. key: in TOML and JSON. flag: in a line; "" when a line cannot."""

    name: str  # of Prompt
    key: str
    flag: str
    read: Callable[[str], Any]
    expected: str
    many: bool = False


FIELDS = (
    _Field(name="width", key="width", flag="w", read=_whole, expected="a whole number of pixels"),
    _Field(name="height", key="height", flag="h", read=_whole, expected="a whole number of pixels"),
    _Field(name="frames", key="frame_count", flag="f", read=_whole, expected="a whole number of frames"),
    _Field(name="seed", key="seed", flag="d", read=int, expected="a whole number"),
    _Field(name="steps", key="sample_steps", flag="s", read=_whole, expected="a whole number of steps"),
    _Field(name="guidance", key="guidance_scale", flag="g", read=_number, expected="a number"),
    _Field(name="flow_shift", key="discrete_flow_shift", flag="fs", read=_number, expected="a number"),
    _Field(name="cfg_scale", key="cfg_scale", flag="l", read=_number, expected="a number"),
    _Field(name="cfg_scale_high", key="cfg_scale_high", flag="lh", read=_number, expected="a number"),
    _Field(name="sampler", key="sample_solver", flag="ss", read=str, expected="the name of a sampler"),
    _Field(name="negative_prompt", key="negative_prompt", flag="n", read=str, expected="a text"),
    _Field(name="image", key="image_path", flag="i", read=_unquoted, expected="a path"),
    _Field(name="end_image", key="end_image_path", flag="ei", read=_unquoted, expected="a path"),
    _Field(name="control_video", key="control_video_path", flag="cn", read=_unquoted, expected="a path"),
    _Field(
        name="control_images",
        key="control_image_path",
        flag="ci",
        read=_unquoted,
        expected="a path, or a list of paths",
        many=True,
    ),
    _Field(name="video", key="video_path", flag="", read=_unquoted, expected="a path"),
    _Field(name="strength", key="strength", flag="", read=_share, expected="a number from 0 to 1"),
    _Field(name="one_frame", key="one_frame", flag="of", read=str, expected="a text"),
    _Field(
        name="magcache_retention_ratio",
        key="magcache_retention_ratio",
        flag="mcrr",
        read=_share,
        expected="a number from 0 to 1",
    ),
    _Field(
        name="magcache_threshold",
        key="magcache_threshold",
        flag="mct",
        read=_not_negative,
        expected="a number of at least 0",
    ),
    _Field(
        name="magcache_k",
        key="magcache_k",
        flag="mck",
        read=_count,
        expected="a whole number of at least 0",
    ),
)
_BY_FLAG = {field.flag: field for field in FIELDS if field.flag}
_BY_KEY = {field.key: field for field in FIELDS}
_TEXT, _SUBSET, _KEEP_SIZE = "prompt", "subset", "no_resize_control"


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Every prompt of a file, in order. Raises ConfigError naming the line, or the number of the entry."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"{path}: prompts are read from .txt, .toml and .json files, by the ending.")
    if ending == ".txt":
        prompts = _from_lines(path)
    elif ending == ".toml":
        prompts = _from_toml(path)
    else:
        prompts = _from_json(path)
    if not prompts:
        raise ConfigError(f"{path} holds no prompt. Write one per line, or one entry for each.")
    return prompts


def parse_line(line: str, *, where: str) -> Prompt:
    """A prompt with its flags: "a cat --w 512 --d 1". where: named in errors, e.g. "prompts.txt, line 3".

    Raises ConfigError for an unknown flag, one without a value, a value of a wrong kind, and a flag given
    twice (but --ci, which may be).
    """
    text, *parts = _FLAG.split(line.strip())
    found: dict[str, Any] = {}
    for part in parts:
        flag, _, value = part.strip().partition(" ")
        field = _BY_FLAG.get(flag.lower())
        if field is None:
            raise unknown_key(f"--{flag}", [f"--{known}" for known in _BY_FLAG], where=where, kind="flag")
        value = _converted(field, value.strip(), f"--{field.flag}", where)
        if field.many:
            found[field.name] = (*found.get(field.name, ()), value)
        elif field.name in found:
            raise ConfigError(f"{where}: --{field.flag} is given twice. Keep one of them.")
        else:
            found[field.name] = value
    return Prompt(text=text.strip(), **found)


def parse_table(table: Mapping[str, Any], *, where: str) -> Prompt:
    """A prompt of a TOML or JSON file: {"prompt": "a cat", "width": 512}. Raises ConfigError."""
    if not isinstance(table.get(_TEXT), str):
        raise ConfigError(f'{where} has no prompt. Add {_TEXT} = "what is to be drawn".')
    found: dict[str, Any] = {}
    for key, value in table.items():
        field = _BY_KEY.get(key)
        if field is not None:
            found[field.name] = _from_value(field, value, where)
        elif key == _KEEP_SIZE and isinstance(value, bool):
            found["resize_controls"] = not value
        elif key == _KEEP_SIZE:
            raise ConfigError(f"{where}: {key} = {value!r}; expected true or false.")
        elif key not in (_TEXT, "enum"):  # musubi-tuner numbers its prompts under "enum"
            raise unknown_key(key, [_TEXT, *_BY_KEY, _KEEP_SIZE], where=where, kind="key")
    return Prompt(text=table[_TEXT].strip(), **found)


def _from_lines(path: Path) -> tuple[Prompt, ...]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    return tuple(
        parse_line(line, where=f"{path}, line {number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith(COMMENT)
    )


def _from_toml(path: Path) -> tuple[Prompt, ...]:
    """[prompt] holds what all share; each [[prompt.subset]] adds to it, and wins."""
    whole = read_toml(path)
    common = whole.get(_TEXT)
    if not isinstance(common, dict) or len(whole) > 1:
        names = ", ".join(whole) or "nothing"
        raise ConfigError(
            f"{path} holds {names}; expected one table [prompt] with what all prompts share, and a "
            "[[prompt.subset]] for each of them."
        )
    shared = {key: value for key, value in common.items() if key != _SUBSET}
    subsets = common.get(_SUBSET, [{}])
    if not isinstance(subsets, list) or not all(isinstance(one, dict) for one in subsets):
        raise ConfigError(f"{path}: prompt.subset is no list of tables. Write [[prompt.subset]] for each.")
    return tuple(
        parse_table({**shared, **subset}, where=f"{path}, prompt {number}")
        for number, subset in enumerate(subsets, start=1)
    )


def _from_json(path: Path) -> tuple[Prompt, ...]:
    whole = read_json(path)
    if not isinstance(whole, list):
        raise ConfigError(f"{path} holds no list. Expected a list of prompts, each a text or an object.")
    return tuple(
        _from_entry(entry, f"{path}, prompt {number}") for number, entry in enumerate(whole, start=1)
    )


def _from_entry(entry: Any, where: str) -> Prompt:
    if isinstance(entry, str):
        return parse_line(entry, where=where)
    if isinstance(entry, dict):
        return parse_table(entry, where=where)
    raise ConfigError(f"{where} is {entry!r}; expected a text, or an object with a prompt.")


def _from_value(field: _Field, value: Any, where: str) -> Any:
    """A value of a TOML or JSON file, which has a type already; texts that say a number are taken."""
    if field.many:
        items = value if isinstance(value, list) else [value]
        return tuple(_one_value(field, item, where) for item in items)
    return _one_value(field, value, where)


def _one_value(field: _Field, value: Any, where: str) -> Any:
    wants_text = field.read in (str, _unquoted)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _wrong(field, repr(value), field.key, where)
    if wants_text and not isinstance(value, str):
        raise _wrong(field, repr(value), field.key, where)
    return _converted(field, str(value), field.key, where)


def _converted(field: _Field, text: str, name: str, where: str) -> Any:
    if not text and field.name != "negative_prompt":
        raise ConfigError(f"{where}: {name} has no value; expected {field.expected}.")
    try:
        return field.read(text)
    except (ValueError, OverflowError):
        raise _wrong(field, text, name, where) from None


def _wrong(field: _Field, value: str, name: str, where: str) -> ConfigError:
    return ConfigError(f"{where}: {name} is {value}; expected {field.expected}.")
