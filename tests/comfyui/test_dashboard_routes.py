"""The routes of the dashboard in a real server: jobs by id, samples by number, commands, and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stage import Stage, prepare, staged_prompt
from PIL import Image
from server import running_server

LONG = {"steps": 3000, "pause": 0.01}


@pytest.fixture(scope="module")
def server(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running_server(comfyui_folder, tmp_path_factory.mktemp("server"), prepare=prepare) as client:
        yield Stage(client)


@pytest.fixture
def stage(server: Stage) -> Iterator[Stage]:
    yield server
    server.clear()


def test_a_job_is_listed_and_tells_everything_while_it_runs(stage):
    job = stage.queue(**LONG, sample_every=20)
    found = stage.until(job, lambda one: one["stage"]["done"] >= 25)
    assert (found["state"], found["node"], found["name"]) == ("running", "7", "staged")
    assert found["stage"]["name"] == "train" and found["stage"]["pace"] > 0
    assert len(found["curves"]["loss/current"]) - found["stage"]["done"] in (0, 1)
    assert [sample["step"] for sample in found["samples"]][:3] == [20, 20, 20]
    assert found["curves"]["loss/validation"][0][0] == 20
    assert [line["kind"] for line in found["lines"]] == ["note", "warning"]
    assert stage.jobs()[0]["id"] == job


def test_events_bring_the_same_as_the_route(stage):
    outcome = stage.client.run(staged_prompt(steps=60, pause=0.005, sample_every=30))
    told = [event["data"] for event in outcome.events if event["type"] == "musubi.job"]
    updates = [one for one in told if one["job"]["id"] == told[-1]["job"]["id"]]
    assert [one["job"]["update"] for one in updates] == list(range(1, len(updates) + 1))
    whole = stage.over(updates[0]["job"]["id"])
    steps = [step for one in updates for step, _ in one.get("points", [])]
    assert steps == [row[0] for row in whole["curves"]["loss/current"]] == list(range(1, 61))
    assert [one for update in updates for one in update.get("samples", [])] == whole["samples"]
    bars = [event["data"] for event in outcome.events if event["type"] == "progress"]
    assert (bars[-1]["value"], bars[-1]["max"], bars[-1]["node"]) == (60, 60, "7")


def test_save_and_sample_are_done_while_the_job_goes_on(stage):
    job = stage.queue(**LONG, sample_every=10_000)
    stage.until(job, lambda one: one["curves"])
    assert stage.command(job, "save") == (200, "")
    saved = stage.until(job, lambda one: one["files"])
    assert [file["what"] for file in saved["files"]] == ["LoRA", "run state"]
    assert stage.command(job, "sample") == (200, "")
    done = stage.until(job, lambda one: len(one["samples"]) == 3)
    assert done["state"] == "running" and done["asked"] == []


def test_stop_and_keep_lets_the_graph_go_on(stage):
    job = stage.queue(**LONG)
    stage.until(job, lambda one: one["curves"])
    assert stage.command(job, "stop") == (200, "")
    over = stage.over(job)
    assert over["state"] == "stopped"
    assert over["files"][-1] == {"what": "LoRA", "path": "staged.safetensors"}


def test_cancel_and_failure_are_told_apart(stage):
    job = stage.queue(**LONG)
    stage.client.post("/interrupt", {})
    assert stage.over(job)["state"] == "cancelled"
    failed = stage.over(stage.queue(steps=1, ending="the disk is full"))
    assert (failed["state"], failed["message"]) == ("failed", "RuntimeError: the disk is full")


def test_only_commands_that_a_running_job_knows_are_taken(stage):
    job = stage.queue(**LONG)
    for nonsense in ("shell", "", None, 5, ["save"], {"save": 1}, "__class__"):
        status, why = stage.command(job, nonsense)
        assert status == 400 and "save, sample, stop" in why
    for body in (b"", b"[]", b"save", b'"save"', b"\xff"):
        assert stage.ask(f"/musubi/jobs/{job}", body)[0] == 400
    for foreign in ("0" * 32, "..", "%2e%2e", job.upper(), job[:-1], f"{job}%00"):
        assert stage.command(foreign, "stop")[0] in (404, 405)
    assert stage.command(job, "stop") == (200, "")
    stage.over(job)
    status, why = stage.command(job, "save")
    assert status == 409 and "is over" in why


def test_a_form_of_a_foreign_page_is_no_command(stage):
    """A browser posts forms for any page without asking; JSON it does not."""
    job = stage.queue(**LONG)
    body = json.dumps({"command": "stop"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert stage.ask(f"/musubi/jobs/{job}", body, kind)[0] == 415
    assert stage.jobs()[0]["asked"] == []


def test_samples_are_found_by_number_and_nothing_else_is_read(stage):
    job = stage.over(stage.queue(steps=5, pause=0, sample_every=5))
    base = f"/musubi/jobs/{job['id']}/samples"
    forms = {sample["number"]: "clip" if sample["clip"] else "still" for sample in job["samples"]}
    assert sorted(forms) == [0, 1, 2]
    kinds = [
        Image.open(io.BytesIO(stage.ask(f"{base}/{number}/{form}")[1])).format
        for number, form in forms.items()
    ]
    assert kinds == ["JPEG", "JPEG", "WEBP"]
    assert stage.ask(f"{base}/0/clip")[0] == 404
    for path in (
        "3/still",
        "-1/still",
        "0.jpg/still",
        "0/..%2F0.jpg",
        "%2e%2e/still",
        "..%2f..%2f..%2fuser%2fdefault%2fcomfy.settings.json/still",
        "/etc/passwd",
        "%2Fetc%2Fpasswd/still",
        "9999999999999999999999/still",
        "²/still",
    ):
        assert stage.ask(f"{base}/{path.replace('²', '%C2%B2')}")[0] == 404, path


def test_no_answer_names_a_folder_of_the_server(stage):
    job = stage.over(stage.queue(steps=20, pause=0, sample_every=5))
    text = json.dumps([stage.jobs(), job])
    assert str(stage.client.base) not in text and "/tmp" not in text
