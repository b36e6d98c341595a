"""MagCache's calibration in ComfyUI's sampling runs: measures the ratios and writes them to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_core.files.replace import write_text
from musubi_core.sampling.magcache_calibration import BranchMeasures, doubts, measured_table
from musubi_core.sampling.magcache_tables import tables_text

from .block_span import Call, through_blocks
from .known_networks import KnownNetwork
from .sampling_run import SamplingRun, asked_in, show_on_node, step_of
from .skipping import facts_of

TIME_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """What a calibration node was told. model: architecture and variant, None to find out."""

    node: str
    known: KnownNetwork
    file: Path
    model: tuple[str, str] | None = None


class Measuring:
    """A Watcher that skips nothing, and writes a ratios file when a run is complete."""

    def __init__(self, settings: MeasureSettings) -> None:
        self.settings = settings
        self._run: SamplingRun | None = None
        self._measures: dict[str, BranchMeasures] = {}
        self._keys: dict[str, Any] = {}  # branch -> the conditioning that stands for it
        self._steps: set[int] = set()

    def fresh(self) -> Measuring:
        return Measuring(self.settings)

    def begin(self, run: SamplingRun) -> None:
        self._run, self._measures, self._keys, self._steps = run, {}, {}, set()

    def evaluate(self, executor: Any, call: Call) -> Any:
        run = self._run
        if run is None or len(call.options["sample_sigmas"]) != len(run.sigmas):
            return executor(*call.args, **call.kwargs)
        answer, added = through_blocks(executor, call, self.settings.known)
        if added is None:
            return answer
        step, asked = step_of(call), asked_in(call)
        self._steps.add(step)
        for one, part in zip(asked, added.chunk(len(asked)), strict=True):
            if self._keys.setdefault(one.branch, one.key) == one.key:
                self._measures.setdefault(one.branch, BranchMeasures()).add(step, part)
        return answer

    def end(self, *, complete: bool) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        steps = len(run.sigmas) - 1
        if not complete or len(self._steps) < steps or "cond" not in self._measures or steps < 2:
            self._say(
                f"MagCache's calibration saw {len(self._steps)} of {steps} steps; no ratios were written."
            )
        else:
            self._write(run)
        self._measures, self._keys = {}, {}

    def _write(self, run: SamplingRun) -> None:
        architecture, variant = self.settings.model or self.settings.known.table(facts_of(run))
        times = [round(sigma, TIME_DIGITS) for sigma in run.sigmas[:-1]]
        details = {"latent": list(run.size), "times": times}
        table = measured_table(architecture, variant, self._measures, details)
        write_text(self.settings.file, tables_text([table]))
        doubt = doubts(self._measures)
        self._say(
            f"Ratios of {table.name} are in {self.settings.file.name}. Press R, then choose the file in Load "
            f"MagCache Ratios. {doubt}".strip()
        )

    def _say(self, text: str) -> None:
        show_on_node(self.settings.node, text)
