"""Writes the option tables of docs/*.md from the declarations: `python -m musubi_core.cli.option_docs`.

A page holds `<!-- options: train -->` and `<!-- end -->`; what stands between them is ours.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from musubi_core.cli.flags import Flag, gather
from musubi_core.cli.jobs import JOBS
from musubi_core.cli.later import LATER_OPTIONS
from musubi_core.cli.parser import default_text
from musubi_core.config import OptionInfo
from musubi_core.files.replace import write_text

DOCS = Path(__file__).parents[2] / "docs"
MARKED = re.compile(r"(<!-- (options|keys|later): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page of Markdown with every marked table replaced by the present one.

    Raises KeyError for a marker that names nothing: a slip of the writer.
    """
    makers: dict[str, Callable[[str], str]] = {"options": job_tables, "keys": key_table, "later": later_list}

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}{makers[found[2]](found[3])}\n{found[4]}"

    return MARKED.sub(fill, page)


def job_tables(name: str) -> str:
    """The options of a job, one table per group."""
    groups: dict[str, list[Flag]] = {}
    job = JOBS[name]
    for flag in job.flags().values():
        groups.setdefault(flag.group, []).append(flag)
    tables = [
        f"**{title[0].upper()}{title[1:]}**\n\n{_table(flags, '--', job.positional)}"
        for title, flags in groups.items()
    ]
    return "\n\n".join(tables)


def key_table(name: str) -> str:
    """The keys of a dataset file, or of network_args."""
    if name == "dataset":
        from musubi_core.data.dataset_config import DatasetConfig as Keys
    else:
        from musubi_core.networks.config import NetworkArgs as Keys  # type: ignore[assignment]

        assert name == "network-args", name
    return _table(gather((Keys,), {}).values(), "", switch="true or false")


def later_list(name: str) -> str:
    """What musubi-tuner has for a job and this version has not."""
    options = LATER_OPTIONS[name]
    return ", ".join(f"`--{option.name}`" for option in sorted(options, key=lambda option: option.name))


def _table(flags: Iterable[Flag], prefix: str, positional: str = "", *, switch: str = "switch") -> str:
    rows = ["| Option | Value | Default | What it does |", "|---|---|---|---|"]
    for flag in flags:
        info = flag.info
        start = "" if info.name == positional else prefix
        default = "required" if info.required else default_text(flag)
        value = switch if info.type is bool else value_text(info)
        cells = (f"`{start}{info.name}`", value, default, info.help)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def value_text(info: OptionInfo) -> str:
    """What may be given, in words, e.g. "whole number, at least 1" or "no, fp16, bf16"."""
    if info.choices:
        return ", ".join(info.choices)
    words = {int: "whole number", float: "number", str: "text", Path: "path"}[info.type]
    if info.many:
        words = f"list of {words}s"
    if info.ge is not None and info.le is not None:
        return f"{words}, {info.ge:g} to {info.le:g}"
    if info.ge is not None:
        return f"{words}, at least {info.ge:g}"
    return words if info.le is None else f"{words}, at most {info.le:g}"


def stale_pages(folder: Path) -> dict[Path, str]:
    """The pages whose tables are not the present ones, with what they should be."""
    stale = {}
    for path in sorted(folder.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        fresh = with_tables(page)
        if fresh != page:
            stale[path] = fresh
    return stale


def main() -> int:
    for path, page in stale_pages(DOCS).items():
        write_text(path, page)
        sys.stdout.write(f"{path.name} is up to date again.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
