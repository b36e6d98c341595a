"""MagCache in ComfyUI's sampling runs: finds the ratios, says what will be skipped, and what was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from musubi_core.sampling.magcache import always_computed
from musubi_core.sampling.magcache_batch import MagCacheBatch
from musubi_core.sampling.magcache_config import BRANCHES, SkipRule
from musubi_core.sampling.magcache_curve import even_positions, position_of, ratios_at
from musubi_core.sampling.magcache_tables import FIRST_BRANCH, RatioTable, table_for

from .block_span import Call, past_blocks, through_blocks
from .known_networks import Facts, KnownNetwork
from .sampling_run import SamplingRun, asked_in, show_on_node, step_of

AT_THE_START = 0.02  # a run that begins before this position begins at the start
FEW_STEPS = 8  # with fewer, as distilled models have, hardly any step resembles the one before


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipSettings:
    """What a MagCache node was told.

    node: its id, for messages. rule: None for the one that comes with the ratios. tables: to choose from.
    model: architecture and variant, None to find out. start, end: positions before and behind which every
    step is computed. on_cpu: where what the blocks added waits.
    """

    node: str
    known: KnownNetwork
    rule: SkipRule | None
    tables: tuple[RatioTable, ...]
    model: tuple[str, str] | None = None
    start: float = 0.0
    end: float = 1.0
    on_cpu: bool = False


class Skipping:
    """A Watcher that lets tokens pass by the blocks where the ratios allow it."""

    def __init__(self, settings: SkipSettings) -> None:
        self.settings = settings
        self._batch: MagCacheBatch | None = None
        self._skips: tuple[bool, ...] = ()
        self._sigmas: tuple[float, ...] = ()
        self._unseen = False  # the blocks could not be watched

    def fresh(self) -> Skipping:
        return Skipping(self.settings)

    def begin(self, run: SamplingRun) -> None:
        self._batch, self._skips, self._unseen = None, (), False
        self._sigmas = run.sigmas
        steps = len(run.sigmas) - 1
        if steps < 2 or len(set(run.sigmas[:-1])) < 2:
            self._say("MagCache: this run has too few steps to skip any.")
            return
        facts = facts_of(run)
        table, why = choose_table(self.settings, facts, steps)
        if table is None:
            self._say(f"MagCache is off, every step is computed: {why}")
            return
        if not covers(table, run):
            self._say(
                f"MagCache is off, every step is computed: the ratios {table.name} were measured in another "
                "part of the schedule. Measure them in this one."
            )
            return
        self._batch = batch_for(self.settings, table, run)
        self._skips = self._batch.plan(FIRST_BRANCH)
        few = f" With fewer than {FEW_STEPS} steps little can be gained." if steps < FEW_STEPS else ""
        self._say(f"MagCache will skip {sum(self._skips)} of {steps} steps, by the ratios {table.name}.{few}")

    def evaluate(self, executor: Any, call: Call) -> Any:
        batch = self._batch
        if batch is None or not any(self._skips) or len(call.options["sample_sigmas"]) != len(self._sigmas):
            return executor(*call.args, **call.kwargs)
        step, asked = step_of(call), asked_in(call)
        residual = batch.residual(asked, step)
        if residual is not None:
            return past_blocks(executor, call, residual)
        answer, added = through_blocks(executor, call, self.settings.known)
        if added is None:
            self._unseen = True
        else:
            batch.remember(asked, step, self._kept(added))
        return answer

    def end(self, *, complete: bool) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        count = batch.count
        batch.clear()
        if self._unseen:
            self._say("MagCache could not watch the blocks of this network, so every step was computed.")
        elif complete and any(self._skips):
            self._say(
                f"MagCache skipped {count.skipped} of {count.evaluations} evaluations of the network. "
                f"Modelled error of the worst row of skips: {count.worst:.4f}."
            )

    def _kept(self, residual: Tensor) -> Tensor:
        return residual.cpu() if self.settings.on_cpu else residual

    def _say(self, text: str) -> None:
        show_on_node(self.settings.node, text)


def batch_for(settings: SkipSettings, table: RatioTable, run: SamplingRun) -> MagCacheBatch:
    """The state of a run, with the ratios of a table brought to its steps."""
    places = [position_of(sigma, run.noise_at) for sigma in run.sigmas[:-1]]
    expert = "low_noise" if run.sigmas[-1] == 0 else "high_noise"
    rule = settings.rule or table.recommended or SkipRule()
    fixed = always_computed([expert] * len(places), rule.retention, table.experts or None)
    computed = [
        one or not settings.start <= place <= settings.end for one, place in zip(fixed, places, strict=True)
    ]
    measured = measured_positions(table, run)
    ratios = {branch: ratios_at(table.of(branch), measured, places) for branch in BRANCHES}
    return MagCacheBatch(ratios.__getitem__, rule, computed)


def covers(table: RatioTable, run: SamplingRun) -> bool:
    """Whether a run keeps to the part of the schedule that the ratios were measured in, but for two steps."""
    measured = measured_positions(table, run)
    room = 2 * (measured[-1] - measured[0]) / (len(measured) - 1)
    places = [position_of(sigma, run.noise_at) for sigma in run.sigmas[:-1]]
    return measured[0] - room < places[0] and places[-1] < measured[-1] + room


def facts_of(run: SamplingRun) -> Facts:
    """What the choice of a table needs to know of a run."""
    starts = position_of(run.sigmas[0], run.noise_at) < AT_THE_START
    whole = starts and run.sigmas[-1] == 0
    return Facts(size=run.size, references=run.references, masked=run.masked, whole=whole)


def measured_positions(table: RatioTable, run: SamplingRun) -> tuple[float, ...]:
    """Where the ratios of a table stand: those of a calibration run by their noise, published ones evenly."""
    times = table.details.get("times")
    if times is None:
        return even_positions(table.steps)
    return tuple(position_of(float(time), run.noise_at) for time in times)


def choose_table(settings: SkipSettings, facts: Facts, steps: int) -> tuple[RatioTable | None, str]:
    """The table for a run, or None and why not."""
    architecture, variant = settings.model or settings.known.table(facts)
    table = table_for(settings.tables, architecture, variant, steps)
    if table is not None:
        return table, ""
    return None, (
        f"there are no ratios for {architecture} {variant}. Measure them with the node Calibrate MagCache, "
        "or choose a model_type whose ratios fit."
    )
