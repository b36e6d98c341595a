"""The map of the rooms (CONTRIBUTING.md) is the law: imports point one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import musubi_core

CORE = Path(musubi_core.__file__).parent
LEAVES = {"errors", "events"}  # files that every room may use
MAY_IMPORT = {
    "errors": set(),
    "events": set(),
    "config": set(),
    "files": set(),
    "device": set(),
    "pictures": set(),
    "quantization": {"config", "files", "device"},
    "offload": {"config", "device"},
    "networks": {"config", "files"},
    "sampling": {"config"},
    "encoders": {"config", "files", "device", "quantization"},
    "data": {"config", "files"},
    "models": {"config", "files", "device", "quantization", "offload", "encoders", "sampling"},
    "lora_tools": {"config", "files", "device", "pictures", "quantization", "encoders", "networks", "models"},
    "generation": {
        *("config", "files", "device", "pictures", "quantization", "offload", "networks", "sampling"),
        *("encoders", "data", "models"),
    },
    "demo": {
        "config",
        "files",
        "pictures",
        "data",
        "models",
        "networks",
        "sampling",
        "generation",
        "training",
    },
}
MAY_IMPORT["training"] = MAY_IMPORT["generation"] | {"generation"}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"cli"}


def imported_rooms(source: str) -> set[str]:
    """Rooms of musubi_core that a file imports, at any depth of nesting."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names += (
                [f"{module}.{alias.name}" for alias in node.names] if module == "musubi_core" else [module]
            )
    return {name.split(".")[1] for name in names if name.startswith("musubi_core.")}


FILES = sorted(file for file in CORE.rglob("*.py") if file.parent != CORE or file.stem in LEAVES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_imports_point_one_way(file: Path):
    room = file.relative_to(CORE).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[room] | {room} | LEAVES
    found = imported_rooms(file.read_text(encoding="utf-8"))
    assert found <= allowed, (
        f"{file}: {room} may import only {sorted(allowed)}, found {sorted(found - allowed)}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_an_architecture_is_named_only_in_its_folder_and_the_registry(file: Path):
    from musubi_core.models.registry import SPECS

    parts = file.relative_to(CORE).parts
    if parts[0] == "models" and (len(parts) == 3 or file.stem == "registry"):
        return
    # Whole words: musubi-tuner's dataset key flux_kontext_no_resize_control is not a name of an architecture.
    words = set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
    named = [name for name in SPECS if name in words]
    assert not named, f"{file} names {named}; ask the ArchSpec instead"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_the_core_never_imports_comfyui(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & {"comfy", "nodes", "server", "folder_paths", "comfy_api", "execution"}
