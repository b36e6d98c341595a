from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from musubi_core.files import leftovers
from musubi_core.files.leftovers import clear_leftovers, find_folder, unfinished_beside
from musubi_core.files.replace import replace_file, replace_folder

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

REPLACE_AND_DIE = """
    import os, signal, sys
    from pathlib import Path
    from musubi_core.files import replace

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    target, moment = Path(sys.argv[1]), sys.argv[2]
    if moment == "old folder set aside":
        rename, calls = Path.rename, []
        def counted(path, to):
            calls.append(path)
            return rename(path, to) if len(calls) == 1 else die()
        Path.rename = counted
    if moment == "new folder in place":
        replace.shutil.rmtree = die
    with replace.replace_folder(target) as temp:
        (temp / "a").write_text("new")
        if moment == "half filled":
            die()
        (temp / "b").write_text("new")
"""


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@posix_only
@pytest.mark.parametrize(
    ("moment", "expected"),
    [("half filled", "old"), ("old folder set aside", "old"), ("new folder in place", "new")],
)
def test_after_a_kill_a_complete_folder_is_found(tmp_path: Path, moment: str, expected: str):
    target = tmp_path / "state ü"
    with replace_folder(target) as temp:
        (temp / "a").write_text("old")
        (temp / "b").write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(REPLACE_AND_DIE), str(target), moment]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL

    found = find_folder(target)
    assert found == target
    assert contents(found) == {"a": expected, "b": expected}
    with replace_folder(target) as temp:  # and the next write clears up
        (temp / "c").write_text("next")
    assert contents(target) == {"c": "next"}
    assert [path.name for path in tmp_path.iterdir()] == ["state ü"]


@posix_only
def test_clearing_up_brings_back_a_folder_that_was_set_aside(tmp_path: Path):
    target = tmp_path / "state"
    with replace_folder(target) as temp:
        (temp / "a").write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(REPLACE_AND_DIE), str(target), "old folder set aside"]
    subprocess.run(command, timeout=60, check=False)
    assert not target.exists()
    assert target in clear_leftovers(tmp_path)
    assert contents(target) == {"a": "old"}


def test_what_is_being_written_is_not_cleared(tmp_path: Path):
    with replace_file(tmp_path / "x") as file, replace_folder(tmp_path / "f") as temp:
        assert clear_leftovers(tmp_path) == []
        file.write(b"1")
        (temp / "y").write_text("2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "x"]


def test_only_our_own_leftovers_are_cleared(tmp_path: Path):
    for name in (".musubi-notes", "x.tmp", ".hidden.tmp", ".musubi-cache.toml"):
        (tmp_path / name).write_text("mine")
    unfinished_beside(tmp_path / "x").write_text("")
    clear_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".hidden.tmp", ".musubi-cache.toml", ".musubi-notes", "x.tmp"]


def test_without_locks_a_folder_must_be_a_day_old(tmp_path: Path, monkeypatch):
    """Windows: no locks on folders."""
    monkeypatch.setattr(leftovers, "fcntl", None)
    temp = unfinished_beside(tmp_path / "state")
    temp.mkdir()
    assert clear_leftovers(tmp_path) == []
    os.utime(temp, (0, 0))
    assert clear_leftovers(tmp_path) == [temp]
    with replace_folder(tmp_path / "state") as inner:
        (inner / "x").write_text("1")
    assert contents(tmp_path / "state") == {"x": "1"}


def test_a_folder_that_never_was_is_not_found(tmp_path: Path):
    assert find_folder(tmp_path / "state") is None
    assert find_folder(tmp_path / "no" / "state") is None
