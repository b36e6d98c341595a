"""Flag, config key and docs row come from one declaration; the guide's own examples are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from musubi_core.cli.flags import gather
from musubi_core.cli.jobs import JOBS
from musubi_core.cli.later import LATER_OPTIONS
from musubi_core.cli.option_docs import DOCS, stale_pages, with_tables
from musubi_core.cli.parser import parse
from musubi_core.cli.settings import config_of, from_command_line, resolve_names
from musubi_core.config import OptionInfo, coerce, parse_toml
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.networks.config import NetworkArgs

PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"])
PAGE_OF = {job: DOCS / f"{job}.md" for job in JOBS}
OPTIONS = [(job, name) for job in JOBS for name in JOBS[job].flags()]
DECLARED = [  # by each architecture that knows an option, in its own words
    pytest.param(info, id="-".join((job, *filter(None, [architecture]), name)))
    for job in JOBS
    for name, flag in JOBS[job].flags().items()
    for architecture, info in (flag.own or {"": flag.info}).items()
]


def page_rows(path: Path) -> dict[str, str]:
    """Rows of the option tables by their first cell."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def sample_value(info: OptionInfo) -> object:
    """A value that the option accepts, as a TOML file would hold it."""
    if info.choices:
        value: object = info.choices[0]
    elif info.type is bool:
        value = True
    elif info.type in (int, float):
        low = 0 if info.ge is None else info.ge
        value = info.type(low if info.le is None else min(max(low, 1), info.le))
    else:
        value = "some text"
    return [value] if info.many else value


def words_for(name: str, value: object) -> list[str]:
    if value is True:
        return [f"--{name}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]


def test_the_tables_in_docs_are_the_present_ones():
    assert not stale_pages(DOCS), "run: python -m musubi_core.cli.option_docs"


def test_a_table_is_written_between_its_marks_and_nowhere_else():
    page = "before\n<!-- options: inspect -->\nstale text\n<!-- end -->\nafter\n"
    fresh = with_tables(page)
    assert fresh.startswith("before\n<!-- options: inspect -->\n**General**\n")
    assert fresh.endswith("\n<!-- end -->\nafter\n")
    assert "stale text" not in fresh
    assert with_tables(fresh) == fresh


@pytest.mark.parametrize(("job", "name"), OPTIONS)
def test_flag_config_key_and_docs_row_are_one_option(job: str, name: str):
    flags = JOBS[job].flags()
    info = flags[name].info
    value = sample_value(info)
    positional = JOBS[job].positional
    words = words_for(name, value)[1:] if name == positional else words_for(name, value)
    from_words = parse(job, words, flags, positional=positional if name == positional else "")
    from_file = resolve_names(from_command_line({name: value}), flags)[name].value
    assert coerce(info, from_words[name], where="words") == coerce(info, from_file, where="file")
    row = page_rows(PAGE_OF[job])[name if name == positional else f"--{name}"]
    assert info.help.replace("|", "\\|") in row
    assert ("required" in row) == info.required


@pytest.mark.parametrize("info", DECLARED)
def test_the_help_of_an_option_is_one_or_two_plain_sentences(info: OptionInfo):
    assert info.help.endswith((".", '."', ".)")), info.help
    assert len(info.help) <= 320, info.help


@pytest.mark.parametrize(("page", "keys"), [("dataset", DatasetConfig), ("train", NetworkArgs)])
def test_every_key_of_a_file_has_a_row(page: str, keys: type):
    rows = page_rows(DOCS / f"{page}.md")
    for name, flag in gather((keys,), {}).items():
        assert flag.info.help.replace("|", "\\|") in rows[name]


def examples(kind: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a kind."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [(page.name, block) for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)]
    return found


def commands() -> list[tuple[str, str]]:
    lines = [
        (page, line) for page, block in examples("bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [(page, line) for page, line in lines if line.startswith("musubi ")]


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_in_the_guide_is_understood(page: str, command: str):
    _, name, *words = shlex.split(command)
    job = JOBS[name]
    flags = job.flags()
    settings = from_command_line(parse(name, words, flags, positional=job.positional))
    for option, setting in settings.items():
        coerce(flags[option].info, setting.value, where=command)
    if "config_file" not in settings:
        config_of(job.config_class(), settings)


@pytest.mark.parametrize(("page", "text"), examples("toml"))
def test_every_toml_file_in_the_guide_is_valid(page: str, text: str):
    table = parse_toml(text, where=page)
    assert table
    if "run.toml" in text:
        assert set(table) - {"optimizer", "output"} <= set(JOBS["train"].flags())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_guide_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.endswith(".png"):  # pictures are made by the demo
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_no_page_promises_an_option_that_is_not_there():
    for job, page in PAGE_OF.items():
        text = page.read_text(encoding="utf-8").partition("<!-- later:")[0]
        for option in LATER_OPTIONS.get(job, ()):
            assert f"`--{option.name}`" not in text
