"""Writes the files in example_workflows, with a picture of each. Run it when a node or an example changes:

python tests/comfyui/example_files.py ~/ComfyUI
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dashboard_stage import Page, chromium, prepare, wait_for
from example_tools import TOOLS
from example_training import TRAINING
from PIL import Image
from server import running_server
from workflow_maker import Example, Info, workflow_of

FOLDER = Path(__file__).parents[2] / "example_workflows"
EXAMPLES: tuple[Example, ...] = tuple(make() for make in (*TRAINING, *TOOLS))
OPEN = "return window.app.loadGraphData(arguments[0]).then(() => true)"
FIT = "window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
LOOKS = {"Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
SIZE = (2600, 1500)  # of the window in pixels
PLACES = {
    "dit": "diffusion_models",
    "unet_name": "diffusion_models",
    "model_name": "diffusion_models",
    "architecture.dit_high_noise": "diffusion_models",
    "vae": "vae",
    "vae_name": "vae",
    "lora_name": "loras",
    "architecture.text_encoder1": "text_encoders",
    "architecture.text_encoder2": "text_encoders",
    "architecture.t5": "text_encoders",
    "clip_name": "text_encoders",
}


def place_names(base: Path) -> None:
    """Empty files under the names that the examples have, so that nothing is shown as missing."""
    prepare(base)
    for example in EXAMPLES:
        for one in example.graph.values():
            for option, value in one.get("inputs", {}).items():
                if option in PLACES and isinstance(value, str):
                    file = base / "models" / PLACES[option] / value
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
                if option == "folder":
                    (base / "input" / value).mkdir(exist_ok=True)
                if option == "run":
                    run = base / "output" / "musubi" / value
                    run.mkdir(parents=True)
                    (run / f"{value}.safetensors").touch()


def text_of(example: Example, info: Info) -> str:
    return json.dumps(workflow_of(example, info), indent=1, ensure_ascii=False) + "\n"


def open_workflow(page: Page, workflow: dict[str, Any]) -> None:
    """Show a workflow in the front end, the whole of it in view."""
    page.clear_graph()
    page.js(OPEN, workflow)
    wait_for(lambda: page.js("return window.app.graph.nodes.length") == len(workflow["nodes"]))


def take(page: Page, target: Path) -> None:
    page.js(FIT)
    page.js("return new Promise((done) => setTimeout(done, 1500))")
    with Image.open(io.BytesIO(page.browser.get_screenshot_as_png())) as shot:
        shot.convert("RGB").save(target, quality=85)


def main(folder: Path, place: Path) -> None:
    with (
        running_server(folder, place, prepare=place_names) as client,
        chromium(place / "profile") as browser,
    ):
        info, page = client.get("/object_info"), Page(browser, client.url)
        browser.set_window_size(*SIZE)
        page.open()
        for name, value in LOOKS.items():
            page.js("return window.app.extensionManager.setting.set(...arguments)", name, value)
        for example in EXAMPLES:
            text = text_of(example, info)
            (FOLDER / f"{example.name}.json").write_text(text, encoding="utf-8")
            open_workflow(page, json.loads(text))
            take(page, FOLDER / f"{example.name}.jpg")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(sys.argv[1]).expanduser(), Path(made))
