"""What is asked of a running training: granted between two steps, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fake_arch import FAKE, config_for, write_workplace
from safetensors.torch import load_file

from musubi_core.events import FileWritten, Metrics, Note
from musubi_core.training.metrics import read_metrics
from musubi_core.training.requests import Requests
from musubi_core.training.run import train


def run(place, *, asked=None, **options):
    """A run in which `asked` maps a step to what is asked after it. Returns (result, events)."""
    requests, events = Requests(), []

    def emit(event):
        events.append(event)
        if isinstance(event, Metrics) and event.step in (asked or {}):
            requests.ask(asked[event.step])

    return train(config_for(place, **options), emit, spec=FAKE, requests=requests), events


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".json")
    }


def losses(place) -> list[float]:
    return [line["loss/current"] for line in read_metrics(place["output_dir"] / "lora.metrics.jsonl")]


@pytest.mark.parametrize("optimizer", ["AdamW", "schedulefree.AdamWScheduleFree"])
def test_saving_now_does_not_change_the_training(tmp_path, optimizer):
    places = [write_workplace(tmp_path / name) for name in ("asked", "alone")]
    options = {"max_train_steps": 7, "optimizer_type": optimizer, "network_dropout": 0.2}
    run(places[0], asked={2: "save", 5: "save"}, **options)
    run(places[1], **options)
    assert losses(places[0]) == losses(places[1])
    one, other = (load_file(place["output_dir"] / "lora.safetensors") for place in places)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_saving_now_writes_lora_and_state_of_the_step_just_made(tmp_path):
    place = write_workplace(tmp_path)
    _, events = run(place, asked={3: "save"}, max_train_steps=6)
    written = [event.path.name for event in events if isinstance(event, FileWritten)]
    assert written == ["lora-step00000003.safetensors", "lora-step00000003-state", "lora.safetensors"]
    at = [
        event.step
        for event in events[: events.index(next(e for e in events if isinstance(e, FileWritten)))]
        if isinstance(event, Metrics)
    ]
    assert at == [1, 2, 3]


def test_a_run_goes_on_from_what_was_saved_now(tmp_path):
    whole, parted = (write_workplace(tmp_path / name) for name in ("whole", "parted"))
    run(whole, max_train_steps=6)
    run(parted, asked={3: "save"}, max_train_steps=6)
    state = parted["output_dir"] / "lora-step00000003-state"
    (parted["output_dir"] / "lora.safetensors").unlink()
    run(parted, max_train_steps=6, resume=str(state))
    one, other = (load_file(place["output_dir"] / "lora.safetensors") for place in (whole, parted))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_lora_saved_now_never_makes_room(tmp_path):
    """save_last_n_steps counts what the run saves by itself."""
    place = write_workplace(tmp_path)
    run(place, asked={1: "save"}, max_train_steps=8, save_every_n_steps=2, save_last_n_steps=1)
    names = {path.name for path in place["output_dir"].glob("*.safetensors")}
    assert names == {"lora-step00000001.safetensors", "lora-step00000006.safetensors", "lora.safetensors"}


def test_saving_twice_the_same_step_is_said_not_done(tmp_path):
    place = write_workplace(tmp_path)
    _, events = run(place, asked={2: "save"}, max_train_steps=4, save_every_n_steps=2)
    assert [event.path.name for event in events if isinstance(event, FileWritten)].count(
        "lora-step00000002.safetensors"
    ) == 1
    assert any(isinstance(event, Note) and "step 2" in event.text for event in events)


def test_a_request_is_granted_once():
    requests = Requests()
    requests.ask("save")
    requests.ask("save")
    assert requests.waiting() == {"save"}
    assert [requests.take("save"), requests.take("save"), requests.take("sample")] == [True, False, False]
    assert not requests.waiting()


def test_no_request_is_lost_between_threads():
    """As many askers as takers: each asks only after the last wish was taken."""
    requests, taken, rounds = Requests(), 0, 300

    def ask():
        for _ in range(rounds):
            while requests.waiting():
                time.sleep(0)
            requests.ask("save")

    asker = threading.Thread(target=ask)
    asker.start()
    while asker.is_alive() or requests.waiting():
        taken += requests.take("save")
        time.sleep(0)
    asker.join()
    assert taken == rounds


def test_requests_do_not_import_torch():
    code = "import sys, musubi_core.training.requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
