"""Takes the pictures of the dashboard in docs/images. Run it when its looks change, then look at them:

python tests/comfyui/dashboard_pictures.py ~/ComfyUI
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import skimage.data
from dashboard_stage import Page, Stage, chromium, prepare, wait_for
from PIL import Image
from selenium.webdriver import ActionChains
from server import running_server

PICTURES = Path(__file__).parents[2] / "docs" / "images"
PROMPTS = {"chelsea": "a cat of mine, close-up", "coffee": "a cup of coffee in my style"}
NODE = """
    const node = window.LiteGraph.createNode("MusubiTrainLora");
    node.pos = [410, 90];
    window.app.graph.add(node);
"""


def place_pictures(base: Path) -> None:
    """Photographs in place of samples."""
    prepare(base)
    for name, prompt in PROMPTS.items():
        Image.fromarray(getattr(skimage.data, name)()).resize((448, 300)).save(
            base / "input" / f"{prompt}.png"
        )


def widen(page: Page, pixels: int) -> None:
    """Drag the edge of the side bar."""
    find = """
        return [...document.querySelectorAll(".p-splitter-gutter")].find((one) => {
          const { x, height } = one.getBoundingClientRect();
          return x > 100 && x < 700 && height > 300;
        });
    """
    ActionChains(page.browser).drag_and_drop_by_offset(page.js(find), pixels, 0).perform()


def take(page: Page, name: str, palette: str) -> None:
    page.js("window.app.extensionManager.setting.set('Comfy.ColorPalette', arguments[0])", palette)
    page.js("return new Promise((done) => setTimeout(done, 800))")
    page.browser.save_screenshot(str(PICTURES / name))


def main(folder: Path, place: Path) -> None:
    with (
        running_server(folder, place, prepare=place_pictures) as client,
        chromium(place / "profile") as browser,
    ):
        page, stage = Page(browser, client.url), Stage(client)
        page.open()
        page.clear_graph()
        page.js(NODE)
        stage.queue(steps=1400, pause=0.012, sample_every=250, name="my cat")
        page.find("section.musubi")
        widen(page, 300)
        ActionChains(page.browser).move_by_offset(400, 300).perform()  # away from the edge, which lights up
        wait_for(lambda: "Step 750" in page.texts(".musubi-step h4"))
        take(page, "dashboard.png", "dark")
        take(page, "dashboard-light.png", "light")
        page.find(".musubi-thumbnail").click()
        take(page, "dashboard-sample.png", "dark")
        stage.clear()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(sys.argv[1]).expanduser(), Path(made))
