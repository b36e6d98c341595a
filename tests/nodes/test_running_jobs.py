"""The registry of running jobs: what pages are told, what they may ask, and what happens at the end."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from pack import pack_module
from PIL import Image

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Metrics, Note, Preview, Progress, Warned

running = pack_module("running")
pictures = pack_module("job_pictures")


class Cancelled(BaseException):
    """As ComfyUI's own, which is no Exception in its newer versions."""


class FakeLink:
    """Records what would go to ComfyUI."""

    def __init__(self, folder):
        self.folder, self.sent, self.bars, self.waiting = folder, [], [], []
        self.cancel = False

    def send(self, event, data):
        assert event == "musubi.job"
        self.sent.append(json.loads(json.dumps(data, allow_nan=False)))  # pages get strict JSON

    def progress(self, node, prompt, done, total, picture):
        self.bars.append((node, prompt, done, total, picture))

    def later(self, seconds, call):
        self.waiting.append(call)

    def cancelled(self):
        return self.cancel

    def raise_if_cancelled(self):
        if self.cancel:
            raise Cancelled

    def is_cancel(self, error):
        return isinstance(error, Cancelled)

    def temp_folder(self):
        return self.folder

    def shown(self, path):
        return path.name


@pytest.fixture
def link(tmp_path):
    return FakeLink(tmp_path)


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(running, "_jobs", {})


def picture(step, *, frames=1, title="a cat"):
    return Preview(step=step, title=title, frames=np.full((frames, 32, 48, 3), 200, np.uint8), fps=8)


def told(link, what):
    """All that updates brought of one kind, in order."""
    return [one for update in link.sent for one in update.get(what, [])]


def test_a_page_that_followed_and_one_that_comes_late_know_the_same(link, tmp_path):
    with running.job("7", "lora", commands=("save",), link=link) as job:
        for step in range(1, 50):
            job.emit(Metrics(step=step, values={"loss/current": 1 / step}))
            job.emit(Progress(stage="train", done=step, total=50))
        job.emit(Note(text="a note"))
        job.emit(Warned(text="a warning"))
        job.emit(FileWritten(path=tmp_path / "lora.safetensors", what="LoRA"))
        job.emit(picture(49))
    whole = job.whole()
    points = [[step, values["loss/current"]] for step, values in told(link, "points")]
    assert points == [[row[0], row[1]] for row in whole["curves"]["loss/current"]]
    assert told(link, "lines") == whole["lines"]
    assert [line["kind"] for line in whole["lines"]] == ["note", "warning"]
    assert told(link, "files") == whole["files"] == [{"what": "LoRA", "path": "lora.safetensors"}]
    assert told(link, "samples") == whole["samples"]
    assert link.sent[-1]["job"]["state"] == whole["state"] == "finished"


def test_updates_are_numbered_without_gaps_and_few(link):
    with running.job("7", "lora", link=link) as job:
        for step in range(1, 5000):
            job.emit(Metrics(step=step, values={"loss/current": 0.1}))
    numbers = [update["job"]["update"] for update in link.sent]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) < 50
    assert [step for step, _ in told(link, "points")] == list(range(1, 5000))


def test_what_waits_is_told_a_little_later(link):
    """Without this a last message before a long silence would stay unseen."""
    with running.job("7", "lora", link=link) as job:
        job.emit(Note(text="loading the model"))
        assert not told(link, "lines")
        (call,) = link.waiting
        call()
        assert [line["text"] for line in told(link, "lines")] == ["loading the model"]


def test_the_answer_to_a_late_page_is_in_no_later_update(link):
    """The page would count these steps twice, or take the first for a new training."""
    with running.job("7", "lora", link=link) as job:
        job.emit(Metrics(step=1, values={"loss/current": 0.1}))
        whole = job.whole()
        job.emit(Metrics(step=2, values={"loss/current": 0.1}))
    later = [update for update in link.sent if update["job"]["update"] > whole["update"]]
    assert [step for update in later for step, _ in update.get("points", [])] == [2]


@pytest.mark.parametrize("command", ["save", "sample"])
def test_a_command_reaches_the_job_once(link, command):
    with running.job("7", "lora", commands=("save", "sample", "stop"), link=link) as job:
        assert job.ask(command)
        assert job.summary()["asked"] == [command]
        assert link.sent[-1]["job"]["asked"] == [command]
        assert job.requests.take(command) and not job.requests.take(command)
        assert job.summary()["asked"] == []
        assert not job.should_stop()


def test_stop_and_keep_ends_the_work_without_an_error(link):
    with running.job("7", "lora", commands=("stop",), link=link) as job:
        assert not job.should_stop()
        assert job.ask("stop")
        assert job.should_stop()
        job.raise_if_cancelled()
    assert job.state == "stopped"


def test_commands_that_a_job_does_not_obey_are_refused(link):
    with running.job("7", "lora", commands=("save",), link=link) as job:
        assert not job.ask("stop")
        assert not job.should_stop()
    assert not job.ask("save")
    assert job.requests.waiting() == set()


def test_cancel_is_told_to_the_job_and_leaves_as_it_came(link):
    with pytest.raises(Cancelled), running.job("7", "lora", link=link) as job:
        link.cancel = True
        assert job.should_stop()
        job.emit(Progress(stage="train", done=1, total=2))  # saving still reports
        job.raise_if_cancelled()
    assert job.state == "cancelled"
    assert link.sent[-1]["job"]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ConfigError("steps is -1."), "steps is -1."), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_failure_is_shown_and_leaves_as_it_came(link, error, shown):
    with pytest.raises(type(error)), running.job("7", "lora", link=link) as job:
        raise error
    assert (job.state, job.message) == ("failed", shown)


def test_the_bar_moves_a_few_times_per_second_and_ends_full(link):
    with running.job("7", "lora", prompt_id="p", link=link) as job:
        job.emit(Progress(stage="hashing", done=5, total=None))
        for step in range(1, 5001):
            job.emit(Progress(stage="train", done=step, total=5000))
    assert len(link.bars) < 50
    assert link.bars[-1] == ("7", "p", 5000, 5000, None)


def test_a_sample_is_written_small_and_shown_on_the_node(link):
    with running.job("7", "lora", link=link) as job:
        job.emit(Progress(stage="train", done=1, total=9))
        large = np.zeros((1, 1536, 2048, 3), np.uint8)
        job.emit(Preview(step=1, title="large", frames=large, details={"seed": 5}))
        sample = job.sample(0)
        assert Image.open(sample.still).size == (1024, 768)
        assert sample.record()["details"] == {"seed": "5"}
        assert not any("/" in str(value) for value in sample.record().values())
    assert link.bars[-1][4].size == (512, 384)


def test_a_clip_moves_and_has_a_still(link):
    with running.job("7", "lora", link=link) as job:
        frames = np.stack([np.full((16, 16, 3), 20 * at, np.uint8) for at in range(8)])
        job.emit(Preview(step=1, title="clip", frames=frames, fps=8))
    sample = job.sample(0)
    clip = Image.open(sample.clip)
    clip.load()
    assert (clip.n_frames, clip.info["duration"]) == (8, 125)
    assert Image.open(sample.still).format == "JPEG"


def test_samples_are_thinned_evenly_and_their_files_go(link, monkeypatch):
    monkeypatch.setattr(pictures.thinned, "__defaults__", (20,))
    with running.job("7", "lora", link=link) as job:
        for step in range(0, 1000, 10):
            job.emit(picture(step, frames=2))
    steps = [sample.step for sample in job.samples]
    assert 10 <= len(steps) <= 20
    assert (steps[0], steps[-1]) == (0, 990)
    assert {path.stem for path in (link.folder / "musubi" / job.id).iterdir()} == {
        str(sample.number) for sample in job.samples
    }


def test_a_full_disk_costs_the_picture_not_the_training(link, monkeypatch):
    def full(*_):
        raise BadFileError("The disk is full.")

    monkeypatch.setattr(running, "write_sample", full)
    with running.job("7", "lora", link=link) as job:
        job.emit(picture(3))
    assert "The disk is full." in job.whole()["lines"][0]["text"]


def test_old_jobs_make_room_and_running_ones_stay(link):
    with running.job("1", "long", link=link) as long:
        for number in range(40):
            with running.job("2", f"short {number}", link=link) as job:
                job.emit(picture(1))
        names = [one.name for one in running.jobs()]
    assert running.find(long.id) is long
    assert names[0] == "short 39" and len(names) == running.KEPT_JOBS + 1
    assert len(list((link.folder / "musubi").rglob("*.jpg"))) == running.KEPT_JOBS


def test_messages_and_files_are_bounded(link, tmp_path):
    with running.job("7", "lora", link=link) as job:
        for number in range(1000):
            job.emit(Note(text=f"{number} " + "x" * 5000))
            job.emit(FileWritten(path=tmp_path / str(number), what="cache"))
    whole = job.whole()
    assert len(whole["lines"]) == len(whole["files"]) == running.KEPT_LINES
    assert all(len(line["text"]) <= running.LINE for line in whole["lines"])
    assert whole["files"][-1]["path"] == "999"


def test_pages_ask_while_the_job_works(link):
    """The server's thread reads while the job writes."""
    failures = []

    def look(job):
        try:
            while job.state == "running":
                json.dumps(job.whole(), allow_nan=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
            failures.append(error)

    with running.job("7", "lora", link=link) as job:
        looker = threading.Thread(target=look, args=(job,))
        looker.start()
        for step in range(1, 3000):
            job.emit(Metrics(step=step, values={f"loss/{step % 40}": 0.1}))
    looker.join()
    assert not failures
