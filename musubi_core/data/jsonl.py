"""What a JSONL file names: one JSON object per line, UTF-8, blank lines allowed.

A line that is wrong stops everything with its number; a file that a line names and that cannot be used is
skipped like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musubi_core.config import nearest
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.data.items import Skipped
from musubi_core.data.listing import NO_CAPTION, NO_CONTROL, Candidate, Listing, layer_notes
from musubi_core.errors import ConfigError

Line = tuple[str, Mapping[str, Any]]  # (file and line number for messages, members)


def list_jsonl(dataset: DatasetConfig, *, with_controls: bool) -> Listing:
    """The media of a JSONL file, in its order. Raises ConfigError naming file and line."""
    path = dataset.source
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    extra: dict[str, None] = {}
    for where, members in _lines(path):
        candidate = _candidate(where, members, dataset, with_controls)
        extra |= dict.fromkeys(_unused(members, dataset))
        if members.get("caption") is None:
            reason = f"has no caption in {where}."
            skipped.append(Skipped(path=candidate.path, reason=reason, group=NO_CAPTION))
        else:
            candidates.append(candidate)
    notes = [f"{path} has members that are not used: {', '.join(extra)}."] if extra else []
    if dataset.multiple_target:
        notes += layer_notes([candidate.targets for candidate in candidates])
    if any(candidate.controls for candidate in candidates):
        lacking = [candidate for candidate in candidates if not candidate.controls]
        reason = f"has no control_path in {path.name}, where other lines have one."
        skipped += [Skipped(path=each.path, reason=reason, group=NO_CONTROL) for each in lacking]
        candidates = [candidate for candidate in candidates if candidate.controls]
    return Listing(candidates=tuple(candidates), skipped=tuple(skipped), notes=tuple(notes))


def _lines(path: Path) -> Iterator[Line]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: captions may hold U+2028
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            members = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not valid JSON: {error.msg} at column {error.colno}.") from None
        if not isinstance(members, dict):
            raise ConfigError(f"{where} holds a {type(members).__name__}; expected one JSON object per line.")
        yield where, members


def _candidate(
    where: str, members: Mapping[str, Any], dataset: DatasetConfig, with_controls: bool
) -> Candidate:
    kind = "video" if dataset.is_video else "image"
    names = (f"{kind}_path",) if dataset.is_video else (f"{kind}_path", f"{kind}_path_0")
    given = [name for name in names if name in members]
    if not given:
        close = nearest(f"{kind}_path", members)
        hint = f" Did you mean it by {close[0]}?" if close else ""
        raise ConfigError(f'{where} has no "{kind}_path".{hint}')
    media = _text(where, members, given[0])
    caption = "" if members.get("caption") is None else _text(where, members, "caption", empty=True)
    targets: list[Path] = []
    while dataset.multiple_target and f"image_path_{len(targets) + 1}" in members:
        targets.append(Path(_text(where, members, f"image_path_{len(targets) + 1}")))
    return Candidate(
        path=Path(media),
        key=Path(media).as_posix(),
        caption=caption.strip(),
        targets=tuple(targets),
        controls=_controls(where, members) if with_controls else (),
    )


def _controls(where: str, members: Mapping[str, Any]) -> tuple[Path, ...]:
    """control_path, or control_path_<number> in the order of their numbers."""
    found: dict[int, str] = {}
    for name in members:
        match = re.fullmatch(r"control_path(?:_(\d+))?", name)
        if match is None:
            continue
        number = int(match[1] or 0)
        if number in found:
            raise ConfigError(f"{where} gives control {number} twice: {found[number]} and {name}. Keep one.")
        found[number] = name
    return tuple(Path(_text(where, members, found[number])) for number in sorted(found))


def _text(where: str, members: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = members[name]
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {name} is {json.dumps(value)}; expected a text in quotes.")
    if not value and not empty:
        raise ConfigError(f"{where}: {name} is empty; expected a path.")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise ConfigError(
            f"{where}: {name} has half of a surrogate pair (\\ud800 to \\udfff). Write it as UTF-8."
        )
    return value


def _unused(members: Mapping[str, Any], dataset: DatasetConfig) -> Iterator[str]:
    used = (
        r"video_path|caption|control_path"
        if dataset.is_video
        else r"image_path(_0)?|caption|control_path(_\d+)?"
    )
    if dataset.multiple_target:
        used += r"|image_path_\d+"
    return (name for name in members if not re.fullmatch(used, name))
