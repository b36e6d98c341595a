"""Texts of the nodes as files: the English locale, and the tables at the end of the help pages.

    python tests/nodes/node_texts.py

writes both from the schemas, in the first ComfyUI that is found. Do so after changing a tooltip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pack_schemas import PACK, TELL, load

LOCALES = PACK / "locales"
PAGES = PACK / "web" / "docs"
TABLES = "## Inputs\n"  # what follows in a page is written by this script


def locale_file(language: str) -> Path:
    return LOCALES / language / "nodeDefs.json"


def page(name: str) -> Path:
    """The English help page of a node."""
    return PAGES / name / "en.md"


def english(found: Mapping[str, Any]) -> dict[str, Any]:
    """The English locale, as the front end looks it up: names and texts by node id.

    found: what `pack_schemas.TELL` says of each node.
    """
    return {
        name: {
            "display_name": node["display"],
            "description": node["description"],
            "inputs": {**_texts(_inputs(node)), **_texts_of_choices(_inputs(node))},
            "outputs": {
                str(place): {"name": output, "tooltip": tooltip}
                for place, (output, tooltip) in enumerate(node["outputs"])
            },
        }
        for name, node in found.items()
    }


def tables(node: Mapping[str, Any]) -> str:
    """The end of a help page: what goes in and what comes out."""
    inputs = _inputs(node)
    shown = [
        f"| {name} | {about['tooltip']} |" for name, about in inputs.items() if not about.get("advanced")
    ]
    rare = [name for name, about in inputs.items() if about.get("advanced")]
    lines = [TABLES, "| input | meaning |", "|---|---|", *shown, ""]
    if rare:
        lines += [f"Advanced, explained by their tooltips: {', '.join(rare)}.", ""]
    lines += ["## Outputs\n", "| output | meaning |", "|---|---|"]
    lines += [f"| {output} | {tooltip} |" for output, tooltip in node["outputs"]]
    return "\n".join(lines) + "\n"


def _inputs(node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> settings of the inputs that the node itself has, without those inside of them."""
    groups = (node["v1"].get(group, {}) for group in ("required", "optional"))
    return {name: dict(kind[1], kind=kind[0]) for group in groups for name, kind in group.items()}


def _texts(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, str]]:
    return {
        prefix + name: {"name": about.get("display_name") or name, "tooltip": about["tooltip"]}
        for name, about in inputs.items()
    }


def _texts_of_choices(inputs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Texts of the inputs that appear with a choice.

    The front end calls them "choice.input" and looks for "choice_input". One text serves every choice: where
    choices differ, the locale says nothing and the schema's own text is shown.
    """
    texts: dict[str, dict[str, str]] = {}
    different = set()
    for name, about in inputs.items():
        rows = about.get("options", []) if about["kind"] == "COMFY_DYNAMICCOMBO_V3" else []
        for row in rows:
            for group in row["inputs"].values():
                inner = {each: kind[1] for each, kind in group.items()}
                for key, text in _texts(inner, f"{name}_").items():
                    if texts.setdefault(key, text) != text:
                        different.add(key)
    return {key: text for key, text in texts.items() if key not in different}


def main() -> None:
    """Write the English locale and the tables of the pages."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from comfyui_places import comfyui_folders, python_of
    from conftest import COMFYUI_START

    folder = comfyui_folders()[0]
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "tell.py"
        script.write_text(COMFYUI_START.format(folder=str(folder)) + load() + TELL, encoding="utf-8")
        told = subprocess.run([python_of(folder), script], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout.splitlines()[-1])["found"]
    written = json.dumps(english(found), indent=2, ensure_ascii=False) + "\n"
    locale_file("en").parent.mkdir(parents=True, exist_ok=True)
    locale_file("en").write_text(written, encoding="utf-8", newline="\n")
    for name, node in found.items():
        if page(name).is_file():
            text = page(name).read_text(encoding="utf-8").split(TABLES)[0].rstrip() + "\n\n"
            page(name).write_text(text + tables(node), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
