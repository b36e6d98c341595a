"""Every command line of the documents that users come from is understood by our jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from musubi_core.cli.jobs import JOBS
from musubi_core.cli.later import LATER_OPTIONS
from musubi_core.cli.parser import parse
from musubi_core.config import coerce

JOB_OF_SCRIPT = {
    "cache_latents.py": "cache-latents",
    "cache_text_encoder_outputs.py": "cache-text",
    "hv_train_network.py": "train",
    "hv_generate_video.py": "generate",
    "fpack_generate_video.py": "generate",
    "convert_lora.py": "convert-lora",
    "lora_post_hoc_ema.py": "ema-merge",
}
FRAGMENT = "# fragment of "


def commands() -> list[tuple[str, str]]:
    """(job, the words after it as written) of every command line in the file."""
    text = (Path(__file__).parent / "seed_command_lines.txt").read_text(encoding="utf-8")
    found = []
    for block in text.split("\n\n"):
        lines = [line.rstrip().removesuffix("\\") for line in block.splitlines()]
        script = next((line.removeprefix(FRAGMENT) for line in lines if line.startswith(FRAGMENT)), "")
        command = " ".join(line for line in lines if not line.startswith("#")).strip()
        if not command:
            continue
        if not script:
            script = next(name for name in JOB_OF_SCRIPT if name in command)
            command = command.partition(script)[2]
        found.append((JOB_OF_SCRIPT[script], command.removeprefix("accelerate launch ...").strip()))
    return found


def words_of(command: str) -> list[str]:
    """The words a shell would pass on; "..." is dropped, except as the value of an option."""
    words = shlex.split(command)
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word != "..." or before in ("--dit",)
    ]


def test_the_list_is_complete():
    assert len(commands()) == 56


@pytest.mark.parametrize(("job", "command"), commands())
def test_it_parses(job: str, command: str, capsys: pytest.CaptureFixture[str]):
    words = words_of(command)
    try:
        flags = JOBS[job].flags()
        later = {option.name for option in LATER_OPTIONS.get(job, ())}
        known = LATER_OPTIONS.get(job, ())
        values = parse(job, words, flags, positional=JOBS[job].positional, later=known)
    except SystemExit as left:
        assert left.code == 0
        assert "--help" in words
        return
    assert values
    for name, value in values.items():
        if name not in later:
            coerce(flags[name].info, value, where="the command line")


@pytest.mark.parametrize("job", sorted(LATER_OPTIONS))
def test_an_option_is_either_there_or_announced_for_later(job: str):
    declared = {name for flag in JOBS[job].flags().values() for name in (flag.info.name, *flag.info.aliases)}
    assert not declared & {option.name for option in LATER_OPTIONS[job]}
