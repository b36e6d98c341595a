"""Which files make up one checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from musubi_core.errors import BadFileError
from musubi_core.files.os_errors import read_error

MAX_INDEX_BYTES = 100_000_000
_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)", re.IGNORECASE)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # in a folder, the first of these that is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The files of a checkpoint, and the tensors that its index promises (empty without an index)."""

    files: tuple[Path, ...]
    names: frozenset[str] = frozenset()


def find_shards(path: Path) -> Shards:
    """The files that `path` stands for: itself, the files of an index or folder, or its sibling shards.

    Raises BadFileError when a file is missing, an index is malformed, or a folder leaves several choices.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(_INDEX):
        return _from_index(path)
    shard = _SHARD.fullmatch(path.name)
    if shard:
        return _siblings(path, shard)
    return Shards(files=(path,))


def _in_folder(folder: Path) -> Shards:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    for suffix in _SUFFIXES:
        indexes = [file for file in files if file.name.endswith(suffix + _INDEX)]
        if len(indexes) == 1:
            return _from_index(indexes[0])
        weights = [file for file in files if file.suffix.lower() == suffix]
        if not weights:
            continue
        shard = _SHARD.fullmatch(weights[0].name)
        if len(weights) == 1 or (shard and len(weights) == int(shard["count"])):
            return find_shards(weights[0])
        raise BadFileError(
            f"{folder} has {len(weights)} {suffix} files ({_some(weights)}) and no single index. Give the "
            "path of the file to use."
        )
    raise BadFileError(f"{folder} has no weights: expected a file ending in {', '.join(_SUFFIXES)}.")


def _siblings(path: Path, shard: re.Match[str]) -> Shards:
    count = int(shard["count"])
    if not 1 <= int(shard["number"]) <= count:
        return Shards(files=(path,))  # a name that only looks like a shard's
    names = [f"{shard['stem']}-{n:05d}-of-{shard['count']}{shard['suffix']}" for n in range(1, count + 1)]
    return Shards(files=tuple(_existing(path.parent, names, path)))


def _from_index(path: Path) -> Shards:
    """{"weight_map": {tensor: file name}}: files of the same folder only."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise BadFileError(f"{path} has more than {MAX_INDEX_BYTES:,} bytes; no real index does.")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not valid JSON: {error}. Fetch it again.") from error
    table = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise BadFileError(f'{path} is no index of shards: expected {{"weight_map": {{tensor: file name}}}}.')
    outside = [name for name in table.values() if name in ("", ".", "..") or re.search(r"[/\\:\0]", name)]
    if outside:
        raise BadFileError(f"{path} points to {outside[0]!r}, outside its folder. Expected plain file names.")
    files = _existing(path.parent, sorted(set(table.values())), path)
    return Shards(files=tuple(files), names=frozenset(table))


def _existing(folder: Path, names: list[str], asked: Path) -> list[Path]:
    files = [folder / name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise BadFileError(
            f"{asked} needs {len(files)} files, and {len(missing)} of them are missing in {folder}: "
            f"{_some(missing)}. Fetch them into the same folder."
        )
    return files


def _some(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" and more" if len(files) > 3 else "")
