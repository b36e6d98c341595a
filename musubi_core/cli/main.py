"""`musubi <job> [options]`, also `python -m musubi_core` and `accelerate launch -m musubi_core`.

Exit codes: 0 only when what the job promises is on disk and can be read; 2 for what the user can mend, with
one message; 128 + signal (130 for Ctrl-C) after a stop that was asked for; 1 for a bug, with its traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import musubi_core
from musubi_core.cli.architecture import choose
from musubi_core.cli.console import Console
from musubi_core.cli.jobs import JOBS, Job, job_named
from musubi_core.cli.later import LATER_OPTIONS, LaterOption, refuse_later
from musubi_core.cli.parser import parse
from musubi_core.cli.settings import (
    COMMAND_LINE,
    Setting,
    check_architecture,
    config_of,
    from_command_line,
    from_config_file,
    resolve_names,
)
from musubi_core.cli.stop import stop_on_signals
from musubi_core.errors import MusubiError

MENDABLE = 2


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's own) and return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    _never_fail_to_print()
    try:
        return _run(words)
    except MusubiError as error:
        _say(f"error: {error}\n")
        return MENDABLE
    except KeyboardInterrupt:
        _say("Stopped at once; nothing more was saved.\n")
        return 130
    except SystemExit as leave:  # argparse, after --help
        return int(leave.code or 0)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0 if words else MENDABLE
    if words[0] == "--version":
        sys.stdout.write(f"musubi {musubi_core.__version__}\n")
        return 0
    job = job_named(words[0])
    config = configure(job, read_settings(job, words[1:]))
    with Console(sys.stderr, quiet=not _is_first_process()) as console, stop_on_signals() as should_stop:
        job.runner()(config, console, should_stop)
    return should_stop.exit_code if should_stop() else 0


def overview() -> str:
    """The text of `musubi --help`."""
    rows = [f"  {job.name:<16}{job.help}" for job in JOBS.values()]
    return "\n".join(
        [
            "Train LoRAs for video and image diffusion transformers.",
            "",
            "usage: musubi <job> [options]      `musubi <job> --help` lists the options of a job.",
            "",
            "jobs:",
            *rows,
            "",
            "Several GPUs: accelerate launch -m musubi_core train [options]",
            "",
        ]
    )


def read_settings(job: Job, words: Sequence[str]) -> dict[str, Setting]:
    """What the command line and the config file say, the command line winning.

    Raises ConfigError for an unknown option, one of a later version, or a config file that cannot be read.
    """
    flags = job.flags()
    later = LATER_OPTIONS.get(job.name, ())
    values = parse(job.name, words, flags, description=job.help, positional=job.positional, later=later)
    refuse_later(values, job.name, where="the command line")
    typed = from_command_line(values)
    file = typed.pop("config_file", None)
    if file is None:
        return typed
    written = from_config_file(Path(file.value))
    used = {name: setting for name, setting in written.items() if not _is_off(name, setting, later)}
    refuse_later(used, job.name, where=file.value)
    del flags["config_file"]
    return {**resolve_names(used, flags), **typed}


def _is_off(name: str, setting: Setting, later: Sequence[LaterOption]) -> bool:
    """A switch of a later version that a file sets to false asks for nothing."""
    return setting.value is False and any(option.name == name for option in later)


def configure(job: Job, settings: dict[str, Setting]) -> Any:
    """The job's config object, with the options of its architecture inside.

    Raises ConfigError for values that are wrong, missing, or belong to another architecture.
    """
    arch_classes = job.arch_classes()
    if not arch_classes:
        return config_of(job.config_class(), settings)
    flags = job.flags()
    name = choose(
        settings,
        flags,
        tuple(arch_classes),
        checkpoint=job.checkpoint,
        told=lambda: job.named_by(settings),
    )
    check_architecture(settings, flags, name)
    settings = {**settings, "architecture": Setting(value=name, where=COMMAND_LINE)}
    config = config_of(job.config_class(), settings)
    hidden = job.hidden().get(name, ())
    own = {option: setting for option, setting in settings.items() if option not in hidden}
    return job.with_arch_options(config, config_of(arch_classes[name], own))


def _is_first_process() -> bool:
    """False in all but one of the processes that accelerate starts."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_first_process():
        sys.stderr.write(text)
        sys.stderr.flush()


def _never_fail_to_print() -> None:
    """A Windows console that lacks a letter of a file name shows its code instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
