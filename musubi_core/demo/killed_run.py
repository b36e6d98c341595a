"""A training run in a process of its own, killed half-way and resumed: what a power cut does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from musubi_core.errors import TrainingError
from musubi_core.events import Listener, Metrics, Note, Progress, ShouldStop

POLL_SECONDS = 0.05


def train_with_a_kill(
    settings: Path, metrics: Path, *, kill_at: int, steps: int, emit: Listener, should_stop: ShouldStop
) -> int:
    """Run `musubi train --config_file settings`, kill it after step `kill_at`, start it again to the end.

    metrics: the JSON-lines file that the run writes, followed for progress. Returns the step at which the
    killed run died. Raises TrainingError with the end of the run's own output when it fails.
    """
    command = [sys.executable, "-m", "musubi_core", "train", "--config_file", str(settings)]
    log = settings.with_suffix(".log")
    reached = _follow(command, log, metrics, kill_at, steps, emit, should_stop)
    emit(
        Note(text=f"Killed the run at step {reached}, as a power cut would. Starting the same command again.")
    )
    _follow(command, log, metrics, None, steps, emit, should_stop)
    return reached


def _follow(
    command: list[str],
    log: Path,
    metrics: Path,
    kill_at: int | None,
    steps: int,
    emit: Listener,
    should_stop: ShouldStop,
) -> int:
    step = 0
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                step = _report(metrics, step, steps, emit)
                if kill_at is not None and step >= kill_at:
                    process.kill()
                    process.wait()
                    return step
                if should_stop():
                    process.terminate()
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    step = _report(metrics, step, steps, emit)
    if process.returncode != 0 or (kill_at is not None and not should_stop()):
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise TrainingError(
            f"The demo's training ended with exit code {process.returncode}. Its output:\n{tail}"
        )
    return step


def _report(metrics: Path, seen: int, steps: int, emit: Listener) -> int:
    rows = [row for row in read_metrics(metrics) if row["step"] > seen]
    for row in rows:
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        emit(Metrics(step=row["step"], values=values))
    if not rows:
        return seen
    last = rows[-1]
    emit(Progress(stage="train", done=last["step"], total=steps, text=f"loss {last['loss/current']:.4f}"))
    return last["step"]


def read_metrics(path: Path) -> list[dict]:
    """The complete lines of a metrics file; a line that is still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
