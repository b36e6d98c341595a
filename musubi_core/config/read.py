"""TOML and JSON files as plain dictionaries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from musubi_core.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file (UTF-8, a byte-order mark is accepted). Raises ConfigError naming file and line."""
    return parse_toml(_text_of(path), where=str(path))


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """Parse TOML text. Raises ConfigError; a Windows path in double quotes gets its remedy."""
    if sys.version_info >= (3, 11):
        import tomllib as parser

        wrong: type[Exception] = parser.TOMLDecodeError
    else:
        import toml as parser  # Python 3.10 has no parser of its own

        wrong = parser.TomlDecodeError
    try:
        return dict(parser.loads(text))
    except (wrong, IndexError) as error:  # toml raises IndexError on some broken arrays
        hint = ""
        if "\\" in text:
            hint = " A path with backslashes belongs in single quotes: 'C:\\sets\\cats'."
        raise ConfigError(f"{where} is not valid TOML: {error}.{hint}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8). Raises ConfigError naming file, line and column."""
    try:
        return json.loads(_text_of(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None


def read_config(path: Path) -> dict[str, Any]:
    """Parse a .toml or .json file that holds one table. Raises ConfigError."""
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise ConfigError(f"{path}: expected a file ending in .toml or .json.")
    data = read_toml(path) if suffix == ".toml" else read_json(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected a table of settings.")
    return data


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Give the path of an existing file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
