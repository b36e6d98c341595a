from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from musubi_core.errors import BadFileError
from musubi_core.files import replace
from musubi_core.files.replace import (
    check_space,
    check_writable,
    replace_file,
    replace_folder,
    write_json,
    write_text,
)

ODD_NAMES = ["with space.bin", "it's näme 日本語.bin", "#%&{}$!@+=[a].bin"]
if os.name != "nt":  # names that Windows does not allow
    ODD_NAMES += ['"quoted" a\\b?*.bin', "n" * 251 + ".bin"]
posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_of_any_legal_name_is_written_and_replaced(tmp_path: Path, name: str):
    for content in (b"old", b"new"):
        with replace_file(tmp_path / "a folder" / name) as file:
            file.write(content)
    assert (tmp_path / "a folder" / name).read_bytes() == b"new"
    assert names_in(tmp_path / "a folder") == [name]


def test_the_target_keeps_its_old_content_until_the_block_ends(tmp_path: Path):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with replace_file(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.ENOENT, "mine", "other")]
)
def test_an_error_in_the_block_leaves_the_old_file_and_passes_unchanged(tmp_path: Path, error: BaseException):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(type(error)) as caught, replace_file(target) as file:
        file.write(b"part")
        raise error
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["x"]


@posix_only
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    killed = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from musubi_core.files.replace import replace_file
        with replace_file(Path(sys.argv[1])) as file:
            file.write(b"part of the new file")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        target,
    )
    assert killed.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    check_writable(tmp_path)  # what a job does first
    assert names_in(tmp_path) == ["x"]


@posix_only
def test_a_file_larger_than_the_system_allows_is_refused_and_leaves_nothing(tmp_path: Path):
    """A real refusal by the kernel, met both in write() and in the flush on closing."""
    for size in (100, 5_000_000):
        done = run_python(
            """
            import resource, sys
            from pathlib import Path
            from musubi_core.errors import BadFileError
            from musubi_core.files.replace import replace_file
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
            try:
                with replace_file(Path(sys.argv[1])) as file:
                    file.write(bytes(int(sys.argv[2])))
            except BadFileError as error:
                sys.exit(str(error))
            """,
            tmp_path / "x",
            str(size),
        )
        assert "x was not written: the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full.*unchanged.*Free space"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "cannot be written"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "touch", "replace"])
def test_a_refusal_of_the_system_names_file_and_remedy(
    tmp_path, monkeypatch, code: int, words: str, call: str
):
    target = tmp_path / "lora.safetensors"
    target.write_bytes(b"old")

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    if call == "fsync" and code == errno.EACCES:
        pytest.skip("an open file is not refused for want of permission")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, call)), refuse)
    with pytest.raises(BadFileError, match=rf"lora\.safetensors .*{words}"), replace_file(target) as file:
        file.write(b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["lora.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_told_from_other_errors(tmp_path: Path):
    with (
        pytest.raises(BadFileError, match="the disk is full"),
        replace_file(tmp_path / "x"),
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
    ):
        full.write(b"1")
    assert names_in(tmp_path) == []


@posix_only
def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path: Path):
    with (
        pytest.raises(BadFileError, match="longer than the disk allows"),
        replace_file(tmp_path / ("n" * 300)),
    ):
        raise AssertionError("the block must not run")
    assert names_in(tmp_path) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(BadFileError, match="a part of its path is a file"),
        replace_file(tmp_path / "file/a/b"),
    ):
        raise AssertionError("the block must not run")
    with pytest.raises(BadFileError, match="a part of its path is a file"):
        check_writable(tmp_path / "file/out")


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadFileError, match="folder"), replace_file(tmp_path / "folder"):
        raise AssertionError("the block must not run")
    with pytest.raises(BadFileError, match="file"), replace_folder(tmp_path / "file"):
        raise AssertionError("the block must not run")


def test_a_folder_is_replaced_with_all_its_files(tmp_path: Path):
    target = tmp_path / "last state"
    for content in ("old", "new"):
        with replace_folder(target) as temp:
            (temp / content).write_text(content)
            (temp / "deep" / "er").mkdir(parents=True)
            (temp / "deep" / "er" / "x").write_text(content)
    assert names_in(target) == ["deep", "new"]
    assert (target / "deep/er/x").read_text() == "new"
    assert names_in(tmp_path) == ["last state"]


def test_an_error_while_a_folder_is_filled_leaves_the_old_one(tmp_path: Path):
    target = tmp_path / "state"
    with replace_folder(target) as temp:
        (temp / "x").write_text("old")
    with pytest.raises(ValueError), replace_folder(target) as temp:
        (temp / "x").write_text("new")
        raise ValueError
    assert (target / "x").read_text() == "old"
    assert names_in(tmp_path) == ["state"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch):
    target = tmp_path / "state"
    with replace_folder(target) as temp:
        (temp / "x").write_text("old")
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "in use", str(path))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BadFileError, match="state cannot be written: perm"), replace_folder(target) as temp:
        (temp / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert names_in(tmp_path) == ["state"]


def test_text_and_json_are_utf8_with_the_given_line_ends(tmp_path: Path):
    write_text(tmp_path / "a", "é\n日本\r\n")
    assert (tmp_path / "a").read_bytes() == "é\n日本\r\n".encode()
    write_json(tmp_path / "b", {"é": [1, 2.5, None]})
    assert json.loads((tmp_path / "b").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b", {"loss": float("nan")})
    assert json.loads((tmp_path / "b").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}


def test_too_little_space_is_told_before_writing(tmp_path: Path, monkeypatch):
    usage = type("Usage", (), {"total": 10**12, "free": 200 * 10**6})
    monkeypatch.setattr(replace.shutil, "disk_usage", lambda path: usage)
    check_space(tmp_path / "not/yet/there", 100 * 10**6, what="the run state")
    with pytest.raises(BadFileError, match=r"the run state needs 300\.0 MB and the disk has 200\.0 MB free"):
        check_space(tmp_path / "not/yet/there", 300 * 10**6, what="the run state")
    usage.total, usage.free = 0, 0  # a network disk that does not tell
    check_space(tmp_path, 300 * 10**6, what="the run state")


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path):
    check_writable(tmp_path / "a" / "b")
    assert names_in(tmp_path / "a" / "b") == []


def test_an_unwritable_folder_is_told(tmp_path: Path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadFileError, match="out cannot be written: permission denied"):
        check_writable(tmp_path / "out")
