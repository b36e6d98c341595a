"""Measured magnitude ratios: those that come with the program, and calibration files. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from musubi_core.config import read_json
from musubi_core.errors import ConfigError
from musubi_core.sampling.magcache_config import BRANCHES, SkipRule, checked_ratios

FORMAT = "musubi-magcache-1"
FIRST_BRANCH = BRANCHES[0]  # every table has it; it stands for branches that have no ratios of their own
_SHIPPED = Path(__file__).with_name("magcache_ratios.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """Ratios of one model over one number of steps.

    ratios: per branch of guidance ("cond", "uncond"), one per step, the first 1.0. experts: the names of the
    networks whose steps may be skipped, where there are several; empty means all. recommended: by who
    measured them. details: JSON values that are kept beside them, e.g. how steady a measurement was.
    """

    architecture: str
    variant: str
    ratios: Mapping[str, tuple[float, ...]]
    experts: tuple[str, ...] = ()
    recommended: SkipRule | None = None
    source: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.ratios[FIRST_BRANCH])

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.architecture} {self.variant}, {self.steps} steps"

    def of(self, branch: str) -> tuple[float, ...]:
        """The ratios of a branch, or the first one's where it has none: they hardly depend on the prompt."""
        return self.ratios.get(branch, self.ratios[FIRST_BRANCH])


@cache
def shipped_tables() -> tuple[RatioTable, ...]:
    """The published tables."""
    return read_tables(_SHIPPED)


def table_for(tables: Iterable[RatioTable], architecture: str, variant: str, steps: int) -> RatioTable | None:
    """The table of this model whose number of steps is nearest, the larger of two; None without any."""
    fitting = [table for table in tables if (table.architecture, table.variant) == (architecture, variant)]
    return min(fitting, key=lambda table: (abs(table.steps - steps), -table.steps), default=None)


def read_tables(path: Path) -> tuple[RatioTable, ...]:
    """The tables of a ratios file. Raises ConfigError for a file of another kind, or with broken ratios."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(
            f"{path} is no file of magnitude ratios: its format is not {FORMAT!r}. Give a file that "
            "--magcache_calibration wrote."
        )
    entries = data.get("tables")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{path} holds no tables of ratios. Measure them again with --magcache_calibration."
        )
    return tuple(_table(entry, f"{path}, table {number}") for number, entry in enumerate(entries, start=1))


def _table(entry: Any, where: str) -> RatioTable:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {entry!r}; expected architecture, variant, steps and ratios.")
    given, steps = entry.get("ratios"), entry.get("steps")
    if not isinstance(given, dict) or FIRST_BRANCH not in given:
        raise ConfigError(f'{where}: "ratios" must hold a list named {FIRST_BRANCH!r}, found {given!r}.')
    ratios: dict[str, tuple[float, ...]] = {}
    for branch, values in given.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ConfigError(f"{where}: the ratios of {branch!r} are not a list of numbers.")
        if len(values) != steps:
            raise ConfigError(f"{where}: {branch!r} has {len(values)} ratios for {steps!r} steps.")
        ratios[branch] = checked_ratios([float(value) for value in values], where=f"{where}, {branch}")
    experts, details = entry.get("experts", []), entry.get("details", {})
    if not isinstance(experts, list) or not all(isinstance(name, str) for name in experts):
        raise ConfigError(f'{where}: "experts" is {experts!r}; expected a list of texts.')
    if not isinstance(details, dict):
        raise ConfigError(f'{where}: "details" is {details!r}; expected a table.')
    words = {name: entry.get(name) for name in ("architecture", "variant")}
    for name, word in words.items():
        if not isinstance(word, str):
            raise ConfigError(f'{where}: "{name}" is {word!r}; expected a text.')
    return RatioTable(
        architecture=str(words["architecture"]),
        variant=str(words["variant"]),
        ratios=ratios,
        experts=tuple(experts),
        recommended=_rule(entry.get("recommended"), where),
        source=str(entry.get("source", "")),
        details=details,
    )


def _rule(given: Any, where: str) -> SkipRule | None:
    if given is None:
        return None
    names = set(SkipRule.__slots__)
    numbers = isinstance(given, dict) and all(type(value) in (int, float) for value in given.values())
    if not numbers or set(given) != names:
        raise ConfigError(f'{where}: "recommended" is {given!r}; expected {", ".join(sorted(names))}.')
    return SkipRule(**given)


def tables_text(tables: Iterable[RatioTable]) -> str:
    """A ratios file with these tables, as text. `read_tables` is the reverse."""
    return json.dumps({"format": FORMAT, "tables": [_entry(table) for table in tables]}, indent=1) + "\n"


def _entry(table: RatioTable) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "architecture": table.architecture,
        "variant": table.variant,
        "steps": table.steps,
        "ratios": {branch: list(values) for branch, values in table.ratios.items()},
    }
    if table.experts:
        entry["experts"] = list(table.experts)
    if table.recommended is not None:
        entry["recommended"] = {name: getattr(table.recommended, name) for name in SkipRule.__slots__}
    if table.source:
        entry["source"] = table.source
    if table.details:
        entry["details"] = dict(table.details)
    return entry
