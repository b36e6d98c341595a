"""What the tests of the dashboard share: a server with a staged job, and a real browser on its page."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server import Client

NO_BROWSER = "NOT TESTED: no Chromium with its driver found; on Debian: apt install chromium chromium-driver"
SETTINGS = {"Comfy.TutorialCompleted": True}  # no welcome over the page
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)
EMPTY_GRAPH = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}


def prepare(base: Path) -> None:
    """The staged job as a pack of its own, and a user who has seen the welcome."""
    staged = Path(__file__).with_name("staged_job_nodes")
    (base / "custom_nodes" / staged.name).symlink_to(staged, target_is_directory=True)
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")


def wait_for(look: Callable[[], Any], seconds: float = 30) -> Any:
    """What `look` returns, once it is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def staged_prompt(**inputs: Any) -> dict[str, Any]:
    """A graph of the staged job alone."""
    given = {"steps": 200, "pause": 0.02, "sample_every": 50, "ending": "finish", "name": "staged", **inputs}
    return {"7": {"class_type": "MusubiStagedJob", "inputs": given, "_meta": {"title": "Staged"}}}


@dataclass(frozen=True)
class Stage:
    """A server with the staged job."""

    client: Client

    def queue(self, **inputs: Any) -> str:
        """Queue the staged job and wait until it runs. Returns its id."""
        known = {job["id"] for job in self.jobs()}
        self.client.post("/prompt", {"prompt": staged_prompt(**inputs), "prompt_id": str(uuid.uuid4())})
        return wait_for(lambda: next((job["id"] for job in self.jobs() if job["id"] not in known), None))

    def jobs(self) -> list[dict[str, Any]]:
        return self.client.get("/musubi/jobs")["jobs"]

    def until(self, job: str, ready: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Everything about a job, once it is as `ready` says."""

        def look() -> dict[str, Any] | None:
            found = self.client.get(f"/musubi/jobs/{job}")
            return found if ready(found) else None

        return wait_for(look)

    def over(self, job: str) -> dict[str, Any]:
        return self.until(job, lambda one: one["state"] != "running")

    def clear(self) -> None:
        """Cancel what a test left running."""
        for job in self.jobs():
            if job["state"] == "running":
                self.client.post("/interrupt", {})
                self.over(job["id"])

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """(status, body) of a request, also of one that is refused."""
        headers = {} if body is None else {"Content-Type": kind}
        request = urllib.request.Request(self.client.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def command(self, job: str, command: Any) -> tuple[int, str]:
        """(status, what was wrong) of a command."""
        status, body = self.ask(f"/musubi/jobs/{job}", json.dumps({"command": command}).encode())
        return status, json.loads(body).get("error", "")


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a new, empty profile. Skips loudly where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(NO_BROWSER)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


@dataclass(frozen=True)
class Page:
    """ComfyUI's page in a browser."""

    browser: Any
    url: str

    def open(self) -> None:
        self.browser.get(self.url)
        bar = ".side-tool-bar-container"
        ready = f"return Boolean(window.app?.extensionManager && document.querySelector('{bar}'))"
        wait_for(lambda: self.js(ready))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """The first element that is visible, as soon as there is one."""

        def look() -> Any:
            found = self.browser.find_elements("css selector", selector)
            return next((one for one in found if one.is_displayed()), None)

        return wait_for(look)

    def texts(self, selector: str) -> list[str]:
        """The texts of all visible elements."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility())"
            ".map((one) => one.textContent)"
        )
        return self.js(script, selector)

    def tiles(self) -> dict[str, str]:
        return dict(zip(self.texts(".musubi-tiles dt"), self.texts(".musubi-tiles dd"), strict=True))

    def ink(self, variable: str) -> int:
        """How many pixels of the chart have the colour of a line."""
        script = """
            const canvas = document.querySelector(".musubi-chart");
            const colour = getComputedStyle(canvas).getPropertyValue(arguments[0]).trim();
            const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const same = (at) => data[at] === r && data[at + 1] === g && data[at + 2] === b;
            let count = 0;
            for (let at = 0; at < data.length; at += 4) if (same(at) && data[at + 3] === 255) count += 1;
            return count;
        """
        return self.js(script, variable)

    def clear_graph(self) -> None:
        self.js("window.app.loadGraphData(arguments[0])", EMPTY_GRAPH)
