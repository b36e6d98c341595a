"""The code of the page: its unit tests, its types and its style, where node is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODE = shutil.which("node")
TOOLS = ROOT / "node_modules" / ".bin"
needs_node = pytest.mark.skipif(NODE is None, reason="NOT TESTED: node is not installed")
needs_tools = pytest.mark.skipif(
    NODE is None or not TOOLS.is_dir(), reason="NOT TESTED: run npm install for the checks of web/"
)


def call(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_node
def test_the_pure_parts_do_as_they_say():
    assert NODE is not None
    call(NODE, "--test", *(str(file) for file in sorted((ROOT / "tests" / "web").glob("*.test.js"))))


@needs_tools
@pytest.mark.parametrize("check", ["lint", "types", "format"])
def test_the_code_of_the_page_is_clean(check):
    npm = shutil.which("npm")
    assert npm is not None
    call(npm, "run", "--silent", check)


def test_text_of_users_never_becomes_html():
    """eslint forbids the same; this holds without node too."""
    for file in (ROOT / "web").rglob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(", text
        ), file


def test_the_page_loads_nothing_from_elsewhere():
    """ComfyUI may forbid it, and people work offline."""
    for file in (ROOT / "web").rglob("*.*"):
        if file.suffix in (".js", ".css"):
            assert not re.search(r"https?://|@import", file.read_text(encoding="utf-8")), file
