"""MagCache around the drawing of one picture or clip: finds the ratios, and says what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from musubi_core.events import FileWritten, Listener, Note, Warned
from musubi_core.files.replace import write_text
from musubi_core.models.spec import ArchSpec, Conditioning
from musubi_core.sampling.magcache import always_computed, nearest, skip_plan
from musubi_core.sampling.magcache_calibration import BranchMeasures, doubts, measured_table
from musubi_core.sampling.magcache_config import BRANCHES, MagCacheConfig, SkipRule
from musubi_core.sampling.magcache_run import CalibrationRun, MagCacheRun
from musubi_core.sampling.magcache_tables import (
    FIRST_BRANCH,
    RatioTable,
    read_tables,
    shipped_tables,
    table_for,
    tables_text,
)
from musubi_core.sampling.through import Through, straight


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What is about to be drawn, as far as it decides which ratios fit and where skipping starts.

    latent: its shape (C, ..., H, W). times: of the steps, 0..1. serving: the name of the network that answers
    each of them.
    """

    latent: tuple[int, ...]
    conditioning: Conditioning
    times: tuple[float, ...]
    serving: tuple[str, ...]


class Caching(Protocol):
    """What a drawing asks while MagCache is on. Each branch of guidance is then asked by itself."""

    def begin(self, drawn: Drawn) -> None:
        """Before the first step."""

    def through(self, branch: str, step: int) -> Through:
        """How the tokens of a branch get through the network's blocks: conditioning["through"]."""
        ...


@contextmanager
def magcache(
    config: MagCacheConfig, spec: ArchSpec, options: Any, *, folder: Path, tell: Listener
) -> Iterator[Caching | None]:
    """MagCache for one drawing; None where it is off.

    options: settled train options of `spec`. folder: where a calibration run puts its file, named after the
    model and the number of steps, when the drawing is done. Raises ConfigError for unreadable ratios.
    """
    if config.on and spec.ratios_for is None:
        tell(Warned(text=f"MagCache is not offered for {spec.name}; every step is computed."))
    if not config.on or spec.ratios_for is None:
        yield None
        return
    run: _Skipping | _Measuring
    if config.magcache_calibration:
        run = _Measuring(spec, options, folder, tell)
    else:
        run = _Skipping(config, spec, options, tell)
    try:
        yield run
        run.finish()
    finally:
        run.clear()


def ratio_tables(config: MagCacheConfig) -> tuple[RatioTable, ...]:
    """The tables to choose from; none without MagCache or where the user gave lists.

    A job asks before it loads anything. Raises ConfigError for lists and files that cannot be read.
    """
    source = config.source
    if source is None or source.lists:
        return ()
    return shipped_tables() if source.file is None else read_tables(source.file)


class _Skipping:
    """Lets tokens pass by the blocks where the ratios allow it."""

    def __init__(self, config: MagCacheConfig, spec: ArchSpec, options: Any, tell: Listener) -> None:
        self._config = config
        self._tables = ratio_tables(config)
        self._spec, self._options, self._tell = spec, options, tell
        self._run: MagCacheRun | None = None

    def begin(self, drawn: Drawn) -> None:
        table = self._table(drawn)
        if table is None:
            return
        steps, rule = len(drawn.serving), self._config.rule
        computed = always_computed(drawn.serving, rule.retention, table.experts or None)
        plan = skip_plan(nearest(table.of(FIRST_BRANCH), steps), rule, computed)
        self._tell(Note(text=_plan_words(table, rule, plan)))
        self._run = MagCacheRun(lambda branch: nearest(table.of(branch), steps), rule, computed)

    def through(self, branch: str, step: int) -> Through:
        return straight if self._run is None else self._run.through(branch, step)

    def finish(self) -> None:
        if self._run is None:
            return
        count = self._run.count
        self._tell(
            Note(
                text=f"MagCache skipped {count.skipped} of {count.evaluations} evaluations of the network. "
                f"Accumulated error: {count.error:.4f} in all, {count.worst:.4f} in the worst row of skips."
            )
        )

    def clear(self) -> None:
        if self._run is not None:
            self._run.clear()

    def _table(self, drawn: Drawn) -> RatioTable | None:
        source = self._config.source
        if source is not None and source.lists:
            given = dict(zip(BRANCHES, source.lists, strict=False))
            return RatioTable(architecture=self._spec.name, variant="of your list", ratios=given)
        variant = _variant(self._spec, self._options, drawn)
        table = table_for(self._tables, self._spec.name, variant, len(drawn.serving))
        if table is None:
            where = f"in {source.file}" if source is not None and source.file else "that are shipped"
            self._tell(
                Warned(
                    text=f"Among the magnitude ratios {where} are none for {self._spec.name} {variant}: "
                    "MagCache is off and every step is computed. Measure them with --magcache_calibration."
                )
            )
        return table


class _Measuring:
    """Lets tokens through all blocks, and measures the ratios."""

    def __init__(self, spec: ArchSpec, options: Any, folder: Path, tell: Listener) -> None:
        self._spec, self._options, self._folder, self._tell = spec, options, folder, tell
        self._run = CalibrationRun()
        self._drawn: Drawn | None = None

    def begin(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def through(self, branch: str, step: int) -> Through:
        return self._run.through(branch, step)

    def finish(self) -> None:
        if self._drawn is None:
            return
        steps, measures = len(self._drawn.times), self._run.measures
        done = min((len(measured.changes) for measured in measures.values()), default=0)
        if done < steps:
            self._tell(
                Warned(
                    text=f"The calibration run of MagCache ended after {done} of {steps} steps; nothing was "
                    "written."
                )
            )
            return
        self._write(self._drawn, measures)

    def clear(self) -> None:
        self._run.clear()

    def _write(self, drawn: Drawn, measures: Mapping[str, BranchMeasures]) -> None:
        variant = _variant(self._spec, self._options, drawn)
        details = {"latent": list(drawn.latent), "t": [round(t, 6) for t in drawn.times]}
        table = measured_table(self._spec.name, variant, measures, details)
        doubt = doubts(measures)
        if doubt:
            self._tell(Warned(text=doubt))
        path = self._folder / f"magcache_{table.architecture}_{variant}_{table.steps}.json"
        write_text(path, tables_text([table]))
        self._tell(FileWritten(path=path, what="MagCache ratios"))


def _variant(spec: ArchSpec, options: Any, drawn: Drawn) -> str:
    assert spec.ratios_for is not None, "asked only where MagCache is offered"
    height, width = drawn.latent[-2:]
    return spec.ratios_for(options, drawn.conditioning, (height, width))


def _plan_words(table: RatioTable, rule: SkipRule, plan: Sequence[bool]) -> str:
    text = f"MagCache: {sum(plan)} of {len(plan)} steps will be skipped, by the ratios {table.name}."
    advised = table.recommended
    if advised is not None and advised != rule:
        text += (
            f" Whoever measured them used --magcache_threshold {advised.threshold:g} "
            f"--magcache_k {advised.k} --magcache_retention_ratio {advised.retention:g}."
        )
    return text
