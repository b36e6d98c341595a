"""What the registry and the reader of the guide are told about the pack."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import toml as tomllib

PACK = Path(__file__).parents[2]
# The registry drops the whole list when it does not know one of these.
CLASSIFIERS = {
    "Operating System :: OS Independent",
    "Operating System :: Microsoft :: Windows",
    "Operating System :: POSIX :: Linux",
    "Operating System :: MacOS",
    "Environment :: GPU :: NVIDIA CUDA",
    "Environment :: GPU :: AMD ROCm",
    "Environment :: GPU :: Intel Arc",
    "Environment :: GPU :: Apple Metal",
    "Environment :: NPU :: Huawei Ascend",
}


def pyproject() -> dict:
    return tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))


def node_names() -> list[str]:
    """The names that people see, from the schemas in the source; a constant is looked up in its file."""
    names = []
    for file in sorted((PACK / "nodes").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "schema":
                name = next(word.value for word in call.keywords if word.arg == "display_name")
                names.append(name.value if isinstance(name, ast.Constant) else constants[name.id])
    return names


def test_the_registry_is_told_who_what_and_from_which_comfyui_on():
    about = pyproject()["tool"]["comfy"]
    assert about["PublisherId"]
    assert about["DisplayName"]
    assert "Icon" in about
    assert about["requires-comfyui"] == ">=0.8.0"
    assert "web" not in about  # with WEB_DIRECTORY, ComfyUI would load the scripts twice


def test_the_registry_knows_the_project_fields():
    project = pyproject()["project"]
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", project["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert set(project["classifiers"]) <= CLASSIFIERS
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(project["urls"])


def test_the_guide_lists_every_node_and_no_other():
    page = (PACK / "docs" / "comfyui.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \|$", page.partition("## The nodes")[2].partition("## ")[0], re.MULTILINE)
    listed = [name for row in rows[1:] for name in row.split(" | ")[1].split(", ")]
    assert sorted(listed) == sorted(node_names())


def test_the_download_holds_what_comfyui_needs():
    left_out = (PACK / ".comfyignore").read_text(encoding="utf-8").splitlines()
    needed = {
        "nodes/",
        "musubi_core/",
        "web/",
        "docs/",
        "example_workflows/",
        "requirements.txt",
        "__init__.py",
    }
    assert not needed & set(left_out)
