"""Several checkpoints of one run: their order in time, and whether they belong together.

The files stay open from the first look at their headers to the last tensor, so each header is parsed once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.files.header import StoredTensor
from musubi_core.files.tensors import TensorFile

_STEP_IN_NAME = re.compile(r"step(\d+)", re.IGNORECASE)
_NUMBER_IN_NAME = re.compile(r"(\d+)(?!.*\d)")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One open file of the series. step: as recorded, None when it is not."""

    file: TensorFile
    step: int | None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self.file.header.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    @property
    def number(self) -> int | None:
        """A number in the file's name: its step, or else the last one, usually the epoch."""
        found = _STEP_IN_NAME.search(self.path.stem) or _NUMBER_IN_NAME.search(self.path.stem)
        return int(found.group(1)) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Checkpoints, oldest first. order: how that was found out, in words."""

    checkpoints: tuple[Checkpoint, ...]
    order: str

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(one.path for one in self.checkpoints)


@contextlib.contextmanager
def open_series(paths: Sequence[Path], *, sort: bool) -> Generator[Series, None, None]:
    """Open the files and put them in order. Raises ConfigError or BadFileError naming every misfit."""
    if not paths:
        raise ConfigError("No checkpoint was given. Name the LoRA files of one run.")
    doubled = [str(path) for index, path in enumerate(paths) if path.resolve() in _resolved(paths[:index])]
    if doubled:
        raise ConfigError(f"{', '.join(doubled)} is given twice. Name each checkpoint once.")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in paths]
        series = _in_order([_checkpoint(file) for file in files], sort=sort)
        _check_alike(series.checkpoints)
        yield series


def _resolved(paths: Sequence[Path]) -> set[Path]:
    return {path.resolve() for path in paths}


def _checkpoint(file: TensorFile) -> Checkpoint:
    if not file.header.tensors:
        raise BadFileError(f"{file.path} holds no tensors. Give the LoRA files of one run.")
    step = file.metadata.get("ss_steps", "")
    return Checkpoint(file=file, step=int(step) if step.isdecimal() else None)


def _in_order(checkpoints: list[Checkpoint], *, sort: bool) -> Series:
    """By recorded step, else by the number in the name, else by modification time."""
    if not sort:
        return Series(checkpoints=tuple(checkpoints), order="as given")
    keys = (
        ("by the step recorded in the files", [one.step for one in checkpoints]),
        ("by the number in the file names", [one.number for one in checkpoints]),
        ("by modification time", [one.path.stat().st_mtime_ns for one in checkpoints]),
    )
    for order, values in keys:
        known = [value for value in values if value is not None]
        if len(known) == len(checkpoints) and len(set(known)) == len(known):
            ranked = sorted(zip(known, range(len(known)), strict=True))
            return Series(checkpoints=tuple(checkpoints[place] for _, place in ranked), order=order)
    raise ConfigError(
        "The order of the checkpoints cannot be told: steps, numbers in the names and modification times are "
        "missing or equal. Give them oldest first and set --no_sort."
    )


def _check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """All violations at once: other keys, other shapes, another alpha."""
    first = checkpoints[0]
    alphas = _alphas(first)
    problems = []
    for other in checkpoints[1:]:
        lacking = [name for name in first.tensors if name not in other.tensors]
        added = [name for name in other.tensors if name not in first.tensors]
        if lacking or added:
            problems.append(f"{other.path.name} {_difference(lacking, added)}")
        misshapen = [
            f"{name} is {list(other.tensors[name].shape)} there and {list(stored.shape)} here"
            for name, stored in first.tensors.items()
            if name in other.tensors and other.tensors[name].shape != stored.shape
        ]
        if misshapen:
            problems.append(f"{other.path.name}: {_listed(misshapen)}")
        theirs = _alphas(other)
        changed = [
            f"{name} is {theirs[name]:g} there and {alpha:g} here"
            for name, alpha in alphas.items()
            if name in theirs and theirs[name] != alpha
        ]
        if changed:
            problems.append(f"{other.path.name}: {_listed(changed)}")
    if problems:
        raise BadFileError(
            f"These files are not checkpoints of one run; compared with {first.path.name}: "
            f"{'; '.join(problems)}. Nothing was written."
        )


def _alphas(checkpoint: Checkpoint) -> dict[str, float]:
    found = {name: checkpoint.file.read(name) for name in checkpoint.tensors if name.endswith(".alpha")}
    bad = [name for name, alpha in found.items() if alpha.numel() != 1]
    if bad:
        raise BadFileError(f"{checkpoint.path}: {_listed(bad)} should be one number each.")
    return {name: float(alpha) for name, alpha in found.items()}


def _difference(lacking: Sequence[str], added: Sequence[str]) -> str:
    parts = []
    if lacking:
        parts.append(f"lacks {_listed(lacking)}")
    if added:
        parts.append(f"also has {_listed(added)}")
    return " and ".join(parts)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
