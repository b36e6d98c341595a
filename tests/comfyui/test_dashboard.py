"""The dashboard in a real browser, on the page of a real server, while a job runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stage import Page, Stage, chromium, prepare, wait_for
from server import running_server

LONG = {"steps": 6000, "pause": 0.01}


@pytest.fixture(scope="module")
def server(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running_server(comfyui_folder, tmp_path_factory.mktemp("server"), prepare=prepare) as client:
        yield Stage(client)


@pytest.fixture(scope="module")
def opened(server: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        page = Page(browser, server.client.url)
        page.open()
        yield page


@pytest.fixture
def stage(server: Stage) -> Iterator[Stage]:
    yield server
    server.clear()


@pytest.fixture
def page(opened: Page, stage: Stage) -> Page:
    """Asks for the stage too, so that its job ends after the last look at the page."""
    return opened


def shown_step(page: Page) -> int:
    """The step that the panel shows as done."""
    found = re.search(r"Training\s+(\d+) / \d+", page.texts(".musubi-stage span")[0])
    return int(found.group(1)) if found else 0


def test_the_dashboard_opens_and_draws_while_a_job_runs(page, stage):
    stage.queue(**LONG, sample_every=30)
    page.find("section.musubi")
    assert page.find(".musubi-state").text == "Running"
    first = wait_for(lambda: shown_step(page) > 60 and shown_step(page))
    assert page.ink("--musubi-first") > 200, "the loss is drawn"
    assert page.ink("--musubi-second") > 50, "the validation is drawn"
    tiles = page.tiles()
    assert float(tiles["Loss"]) == pytest.approx(0.2, abs=0.05)
    assert float(tiles["Validation"]) == pytest.approx(0.2, abs=0.05)
    assert tiles["Memory"] == "9.3 GB"
    assert re.fullmatch(r"[\d.]+ it/s", tiles["Speed"])
    assert re.search(r"\d+ (s|min)", tiles["Time left"])
    assert page.texts(".musubi-step h4")[-1] == "Step 30"
    wait_for(lambda: page.js("return document.querySelector('.musubi-thumbnail img').naturalWidth") == 256)
    wait_for(lambda: shown_step(page) > first)  # it goes on by itself


def test_the_buttons_reach_the_job(page, stage):
    job = stage.queue(**LONG, sample_every=100_000)
    wait_for(lambda: shown_step(page) > 5)
    page.find("[data-command=save]").click()
    wait_for(lambda: "run state" in page.texts(".musubi-what"))
    assert re.fullmatch(r"staged-step\d{8}-state", page.texts(".musubi-path")[0])
    page.find("[data-command=sample]").click()
    wait_for(lambda: len(page.texts(".musubi-thumbnail")) == 3)
    page.find("[data-command=stop]").click()
    assert stage.over(job)["state"] == "stopped"
    wait_for(lambda: page.find(".musubi-state").text == "Stopped, kept")
    assert not page.texts("[data-command]"), "nothing can be asked of a job that is over"


def test_a_reload_shows_the_running_job_again(page, stage):
    job = stage.queue(**LONG, sample_every=150)
    wait_for(lambda: shown_step(page) > 160)
    before = shown_step(page)
    page.open()
    page.find("section.musubi")
    wait_for(lambda: shown_step(page) >= before)
    wait_for(lambda: "Step 150" in page.texts(".musubi-step h4"))
    assert page.ink("--musubi-first") > 200
    wait_for(lambda: len(page.texts(".musubi-lines li")) == 2)
    stage.client.post("/interrupt", {})
    stage.over(job)
    wait_for(lambda: page.find(".musubi-state").text == "Cancelled, kept")


def test_a_late_page_has_the_same_curve_as_one_that_watched(page, stage):
    job = stage.queue(steps=300, pause=0.003, sample_every=1000)
    over = stage.over(job)
    wait_for(lambda: page.find(".musubi-state").text == "Finished")
    watched = page.js("return document.querySelector('.musubi-chart').ariaLabel"), page.tiles()
    page.open()
    page.js("window.app.extensionManager.sidebarTab.toggleSidebarTab('musubi-training')")
    wait_for(lambda: page.find(".musubi-state").text == "Finished" and page.ink("--musubi-first"))
    assert (page.js("return document.querySelector('.musubi-chart').ariaLabel"), page.tiles()) == watched
    assert f"validation {over['latest']['loss/validation']:.3g}" in watched[0]


def test_captions_and_messages_are_text_whatever_they_hold(page, stage):
    stage.over(
        stage.queue(steps=10, pause=0.005, sample_every=5, name="<b>bold</b><script>window.hacked=1</script>")
    )
    wait_for(lambda: any("<img src=x" in text for text in page.texts(".musubi-lines li")))
    assert page.find(".musubi-body h3").text.startswith("<b>bold</b><script>")
    wait_for(lambda: page.texts(".musubi-thumbnail"))
    page.js("document.querySelectorAll('.musubi-thumbnail')[1].click()")
    assert "<b>bold</b>" in page.find(".musubi-caption").text
    assert not page.js(
        "return window.hacked || document.querySelector('.musubi b, .musubi script, .musubi [src=x]')"
    )
    page.find(".musubi-large [aria-label=Close]").click()


def test_a_sample_is_compared_along_the_steps_by_keyboard(page, stage):
    from selenium.webdriver import ActionChains, Keys

    stage.over(stage.queue(steps=30, pause=0.005, sample_every=10))
    wait_for(lambda: page.texts(".musubi-step h4") == ["Step 30", "Step 20", "Step 10"])
    page.find(".musubi-thumbnail").click()
    caption = page.find(".musubi-caption")
    assert caption.text.startswith("Step 30")
    ActionChains(page.browser).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
    assert caption.text.startswith("Step 10")
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    wait_for(lambda: not caption.is_displayed())


def test_the_chart_is_read_by_keyboard(page, stage):
    from selenium.webdriver import Keys

    stage.over(stage.queue(steps=30, pause=0.005, sample_every=100))
    wait_for(lambda: page.find(".musubi-state").text == "Finished")
    chart = page.find(".musubi-chart")
    chart.send_keys(Keys.HOME)
    assert page.texts(".musubi-place") == ["step 1"]
    chart.send_keys(Keys.ARROW_RIGHT)
    assert page.texts(".musubi-place") == ["step 2"]
    tabs = page.browser.find_elements("css selector", ".musubi-tabs [role=tab]")
    assert [tab.text for tab in tabs] == ["Loss", "LR", "Time", "Memory", "Gradient"]
    tabs[0].send_keys(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement.textContent") == "LR"
    page.find(".musubi-tabs [role=tab]").click()


def test_everything_that_can_be_used_has_a_name(page, stage):
    stage.over(stage.queue(steps=10, pause=0, sample_every=5))
    wait_for(lambda: page.texts(".musubi-thumbnail"))
    nameless = page.js("""
        const text = (one) => one?.textContent.trim();
        const named = (one) => one.ariaLabel || text(one) || text(one.closest("label"))
          || one.querySelector("img")?.alt;
        return [...document.querySelectorAll(".musubi button, .musubi select, .musubi input, .musubi canvas")]
          .filter((one) => !named(one)).map((one) => one.outerHTML);
    """)
    assert nameless == []
