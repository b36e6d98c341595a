"""Events on a terminal and in a log file."""

from __future__ import annotations

import io
from pathlib import Path

from musubi_core.cli.console import Console, progress_line, short_metrics
from musubi_core.events import FileWritten, Metrics, Note, Preview, Progress, Warned


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end():
    log, clock = io.StringIO(), Clock()
    console = Console(log, clock=clock)
    for done in range(101):
        clock.now += 0.25
        console(Progress(stage="latents", done=done, total=100, text=f"{done}.png"))
    lines = log.getvalue().splitlines()
    assert lines[0] == "latents: 40 of 100 (40 %), 40.png"
    assert lines[-1] == "latents: 100 of 100 (100 %), 100.png"
    assert len(lines) == 3


def test_the_end_is_told_once():
    log = io.StringIO()
    console = Console(log, clock=Clock())
    for _ in range(3):
        console(Progress(stage="latents", done=2, total=2))
    assert log.getvalue() == "latents: 2 of 2 (100 %)\n"


def test_a_terminal_gets_one_bar_per_stage_with_notes_above_it():
    terminal = Terminal()
    with Console(terminal) as console:
        console(Progress(stage="latents", done=0, total=2))
        console(Note(text="3 files were skipped."))
        console(Progress(stage="latents", done=2, total=2))
        console(Progress(stage="train", done=1, total=4))
        console(Metrics(step=1, values={"loss/current": 0.25}))
        console(Progress(stage="train", done=4, total=4))
    text = terminal.getvalue()
    assert "3 files were skipped.\n" in text
    assert "latents: 100%" in text
    assert "train: 100%" in text
    assert text.endswith("\n")


def test_a_warning_is_shown_once_however_often_it_comes():
    log = io.StringIO()
    console = Console(log)
    for _ in range(3):
        console(Warned(text="No GPU found."))
    assert log.getvalue() == "warning: No GPU found.\n"


def test_files_are_named_but_not_every_one_of_thousands_of_caches():
    log = io.StringIO()
    console = Console(log)
    console(FileWritten(path=Path("out") / "cats.safetensors", what="LoRA"))
    console(FileWritten(path=Path("cache") / "cat_0512x0512_hv.safetensors", what="latent cache"))
    assert log.getvalue() == f"LoRA: {Path('out') / 'cats.safetensors'}\n"


def test_other_processes_than_the_first_are_silent():
    log = io.StringIO()
    console = Console(log, quiet=True)
    for event in (Note(text="a"), Warned(text="b"), Progress(stage="c", done=1, total=1)):
        console(event)
    console.line("d")
    assert log.getvalue() == ""


def test_a_preview_needs_no_console():
    console = Console(io.StringIO())
    console(Preview(step=1, title="sample", frames=None))


def test_a_bar_in_words():
    known = Progress(stage="train", done=120, total=1600)
    assert progress_line(known, "loss 0.0831") == "train: 120 of 1600 (7.5 %), loss 0.0831"
    assert progress_line(Progress(stage="scan", done=7, total=None), "") == "scan: 7"


def test_the_averaged_loss_is_preferred():
    assert (
        short_metrics({"loss/current": 0.5, "loss/average": 0.25, "lr/unet": 1e-4}) == "loss 0.25, lr 0.0001"
    )
    assert short_metrics({"loss/current": 0.5}) == "loss 0.5"
    assert short_metrics({"max_norm/keys_scaled": 1.0}) == ""
