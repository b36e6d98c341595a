"""Installing the pack leaves a clean ComfyUI as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_places import NOT_TESTED, comfyui_folders, python_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import toml as tomllib

PACK = Path(__file__).parents[2]


def requirements() -> list[str]:
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def declared() -> dict[str, str]:
    """What pyproject.toml asks for by name."""
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonicalize_name(Requirement(line).name): line for line in project["dependencies"]}


def test_requirements_are_part_of_what_the_engine_declares():
    for line in requirements():
        assert declared()[canonicalize_name(Requirement(line).name)] == line


def test_nothing_has_an_upper_limit():
    for line in (*requirements(), *declared().values()):
        assert not any(each.operator in ("==", "<", "<=", "~=") for each in Requirement(line).specifier), line


@pytest.mark.parametrize("folder", comfyui_folders() or [None], ids=str)
def test_comfyui_has_what_requirements_do_not_name(folder: Path | None):
    if folder is None:
        pytest.skip(NOT_TESTED)
    named = {canonicalize_name(Requirement(line).name) for line in requirements()}
    theirs = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.split("#")[0].strip() for line in theirs]
    brought = {canonicalize_name(Requirement(line).name) for line in lines if line}
    assert set(declared()) - named <= brought


@pytest.mark.slow
@pytest.mark.parametrize("folder", comfyui_folders() or [None], ids=str)
def test_installing_changes_no_package_of_a_clean_comfyui(folder: Path | None):
    """Asks pip what it would do; needs a package index."""
    if folder is None:
        pytest.skip(NOT_TESTED)
    words = [str(python_of(folder)), "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    asked = subprocess.run(
        [*words, "-r", str(PACK / "requirements.txt")], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip(f"NOT TESTED: no package index: {asked.stderr[-300:]}")
    new = {canonicalize_name(one["metadata"]["name"]) for one in json.loads(asked.stdout)["install"]}
    listed = subprocess.run(
        [str(python_of(folder)), "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    there = {canonicalize_name(one["name"]) for one in json.loads(listed.stdout)}
    assert new
    assert not new & there
