"""MagCache around the drawing of one picture or clip: finds the ratios, and says what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from musubi_core.errors import ConfigError
from musubi_core.events import FileWritten, Listener, Note, Warned
from musubi_core.files.replace import write_text
from musubi_core.generation.conditions import Conditions
from musubi_core.generation.networks import Networks, sides
from musubi_core.generation.prompt import Prompt
from musubi_core.sampling.evaluation import Ask, Evaluation, VelocityWrapper
from musubi_core.sampling.magcache import always_computed, nearest, skip_plan
from musubi_core.sampling.magcache_calibration import doubts, measured_table
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

TIME_DIGITS = 6


@contextmanager
def magcache(
    config: MagCacheConfig, networks: Networks, conditions: Conditions, *, folder: Path, tell: Listener
) -> Iterator[VelocityWrapper | None]:
    """What `draw` is to be wrapped in; None where every step is computed anyway.

    What the prompt says of MagCache comes before the options, but does not turn it on.
    folder: where a calibration run puts its file, named after the model and the number of steps, when the
    drawing is done. Raises ConfigError for ratios that cannot be read.
    """
    wrapper = _wrapper(_for_prompt(config, conditions.settings.given), networks, conditions, folder, tell)
    if wrapper is None:
        yield None
        return
    try:
        yield wrapper
        wrapper.finish()
    finally:
        wrapper.clear()


def ratio_tables(config: MagCacheConfig) -> tuple[RatioTable, ...]:
    """The tables to choose from; none without MagCache or where the user gave lists.

    A job asks before it loads anything. Raises ConfigError for lists and files that cannot be read.
    """
    source = config.source
    if source is None or source.lists:
        return ()
    if source.file is None:
        return shipped_tables()
    try:
        return read_tables(source.file)
    except ConfigError as error:
        raise ConfigError(f"--magcache_mag_ratios: {error}") from None


def _for_prompt(config: MagCacheConfig, prompt: Prompt) -> MagCacheConfig:
    """The options with the prompt's own settings in their place."""
    names = ("magcache_retention_ratio", "magcache_threshold", "magcache_k")
    given = {name: getattr(prompt, name) for name in names if getattr(prompt, name) is not None}
    return replace(config, **given)


def _wrapper(
    config: MagCacheConfig, networks: Networks, conditions: Conditions, folder: Path, tell: Listener
) -> _Skipping | _Measuring | None:
    spec = networks.spec
    if not config.on:
        return None
    if spec.ratios_for is None:
        tell(Warned(text=f"MagCache is not offered for {spec.name}; every step is computed."))
        return None
    height, width = conditions.size[-2:]
    variant = spec.ratios_for(networks.options, tuple(conditions.pictures), (height, width))
    if config.magcache_calibration:
        if config.magcache_mag_ratios is not None:
            tell(Note(text="--magcache_calibration measures every step; --magcache_mag_ratios is not used."))
        return _Measuring(spec.name, variant, conditions, folder=folder, tell=tell)
    serving = [networks.experts[side].name for side in sides(conditions.settings, networks.experts)]
    table = _table(config, spec.name, variant, len(serving), tell)
    if table is None:
        return None
    plan = _Plan.of(table, config.rule, serving)
    tell(Note(text=plan.words()))
    # A run that would skip nothing is not even asked branch by branch: a batch of both may round differently.
    return _Skipping(plan, tell) if any(map(any, plan.skips.values())) else None


def _table(
    config: MagCacheConfig, architecture: str, variant: str, steps: int, tell: Listener
) -> RatioTable | None:
    """The ratios that the options name for this model; None, said, where there are none."""
    source = config.source
    if source is not None and source.lists:
        given = dict(zip(BRANCHES, source.lists, strict=False))
        return RatioTable(architecture=architecture, variant="as you gave them", ratios=given)
    table = table_for(ratio_tables(config), architecture, variant, steps)
    if table is None:
        where = f"in {source.file}" if source is not None and source.file else "that are shipped"
        tell(
            Warned(
                text=f"Among the magnitude ratios {where} are none for {architecture} {variant}: MagCache is "
                "off, every step is computed. Measure them with --magcache_calibration."
            )
        )
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Ratios brought to the steps of a drawing. computed, skips (per branch): see `sampling.magcache`."""

    table: RatioTable
    rule: SkipRule
    computed: tuple[bool, ...]
    skips: Mapping[str, tuple[bool, ...]]

    @classmethod
    def of(cls, table: RatioTable, rule: SkipRule, serving: Sequence[str]) -> _Plan:
        """serving: for every step the name of the network that answers it."""
        computed = always_computed(serving, rule.retention, table.experts or None)
        skips = {
            branch: skip_plan(nearest(ratios, len(serving)), rule, computed)
            for branch, ratios in table.ratios.items()
        }
        return cls(table=table, rule=rule, computed=computed, skips=skips)

    def run(self) -> MagCacheRun:
        steps = len(self.computed)
        return MagCacheRun(lambda branch: nearest(self.table.of(branch), steps), self.rule, self.computed)

    def words(self) -> str:
        skips = self.skips[FIRST_BRANCH]
        text = (
            f"MagCache: {sum(skips)} of {len(skips)} steps will be skipped, by the ratios {self.table.name}."
        )
        advised = self.table.recommended
        if advised is not None and advised != self.rule:
            text += (
                f" Whoever measured them used --magcache_threshold {advised.threshold:g} "
                f"--magcache_k {advised.k} --magcache_retention_ratio {advised.retention:g}."
            )
        return text


class _Skipping:
    """Lets tokens pass by the blocks where the ratios allow it."""

    def __init__(self, plan: _Plan, tell: Listener) -> None:
        self._run = plan.run()
        self._tell = tell

    def __call__(self, evaluation: Evaluation, ask: Ask) -> Tensor:
        return ask(self._run.through(evaluation.branch, evaluation.step))

    def finish(self) -> None:
        count = self._run.count
        self._tell(
            Note(
                text=f"MagCache skipped {count.skipped} of {count.evaluations} evaluations of the network. "
                f"Accumulated error: {count.error:.4f} in all, {count.worst:.4f} in the worst row of skips."
            )
        )

    def clear(self) -> None:
        self._run.clear()


class _Measuring:
    """Lets tokens through all blocks, and measures the ratios."""

    def __init__(
        self, architecture: str, variant: str, conditions: Conditions, *, folder: Path, tell: Listener
    ) -> None:
        self._architecture, self._variant = architecture, variant
        self._conditions = conditions
        self._folder, self._tell = folder, tell
        self._run = CalibrationRun()
        self._times: dict[int, float] = {}

    def __call__(self, evaluation: Evaluation, ask: Ask) -> Tensor:
        self._times[evaluation.step] = round(evaluation.t, TIME_DIGITS)
        return ask(self._run.through(evaluation.branch, evaluation.step))

    def finish(self) -> None:
        steps, measures = self._conditions.settings.steps, self._run.measures
        if len(self._times) < steps:
            self._tell(
                Warned(
                    text=f"MagCache's calibration run ended after {len(self._times)} of {steps} steps; no "
                    "ratios were written."
                )
            )
            return
        details = {
            "latent": list(self._conditions.size),
            "times": [self._times[step] for step in range(steps)],
        }
        table = measured_table(self._architecture, self._variant, measures, details)
        doubt = doubts(measures)
        if doubt:
            self._tell(Warned(text=doubt))
        path = self._folder / f"magcache_{self._architecture}_{self._variant}_{steps}.json"
        write_text(path, tables_text([table]))
        self._tell(FileWritten(path=path, what="MagCache ratios"))

    def clear(self) -> None:
        self._run.clear()
