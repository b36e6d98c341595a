"""A run that was killed, stopped or resumed ends with the very LoRA of a run that was not."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_arch import (
    FAKE,
    FAKE_PAIR,
    config_for,
    options_for,
    pair_config,
    run_fake,
    write_second,
    write_workplace,
)
from safetensors.torch import load_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Metrics, Note, Warned
from musubi_core.training.metrics import read_metrics
from musubi_core.training.run import train
from musubi_core.training.state import RunState, read_state, write_state

STEPS = 60


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have torch loaded already, so that a kill costs a fraction of a second."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_arch", "accelerate", "prodigyopt"])
    return context


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path)


def run(place, *, stop_at: int | None = None, **options):
    """A run in this process, stopped after a step."""
    seen: list = []

    def stop() -> bool:
        return stop_at is not None and any(isinstance(e, Metrics) and e.step >= stop_at for e in seen)

    result = train(config_for(place, **options), seen.append, stop, spec=FAKE)
    return result, seen


def elsewhere(place, name: str):
    return {**place, "output_dir": place["output_dir"].with_name(name)}


def lora(place, name="lora"):
    return load_file(place["output_dir"] / f"{name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def kill_and_finish(context, place, kills: int, seed: int, pair=None, **options) -> list[int]:
    """Kill -9 at random moments, resuming each time; then let it finish. Returns the steps reached."""
    chance = random.Random(seed)
    chosen = options_for(place, resume="auto", **options)
    metrics = place["output_dir"] / "lora.metrics.jsonl"
    reached: list[int] = []
    for _ in range(kills):
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        goal = before + chance.randint(1, max(1, STEPS // (kills + 1)))
        process = context.Process(target=run_fake, args=(chosen, pair))
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if len(lines) >= goal:
                break
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), "the run failed by itself"
        reached.append(len(read_metrics(metrics)) if metrics.exists() else 0)
    process = context.Process(target=run_fake, args=(chosen, pair))
    process.start()
    process.join()
    assert process.exitcode == 0
    return reached


TRYING = {  # everything that has a memory: dropout, averages, schedule, strata, accumulation, several epochs
    "max_train_steps": STEPS,
    "save_every_n_steps": 3,
    "gradient_accumulation_steps": 3,
    "network_dropout": 0.2,
    "lr_scheduler": "cosine",
    "num_timestep_buckets": 3,
    "validation_split": 0.2,
    "optimizer_type": "Prodigy",
    "learning_rate": 1.0,
}


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_lora(place, processes, kills):
    straight = elsewhere(place, "straight")
    train(config_for(straight, **TRYING), spec=FAKE)
    reached = kill_and_finish(processes, place, kills, seed=kills, **TRYING)
    assert same(lora(place), lora(straight))
    assert any(0 < step < STEPS for step in reached), "at least one kill hit the middle of the run"
    lines = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    untimed = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]
    theirs = [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
        for line in read_metrics(straight["output_dir"] / "lora.metrics.jsonl")
    ]
    assert untimed == theirs
    assert not list(place["output_dir"].glob(".musubi*")), "what the killed runs left has been cleared"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_run_on_two_networks_ends_with_the_same_pair(place, processes):
    second = write_second(place)
    chosen = {"second": second, "apart": True, "wait": True}
    options = {**TRYING, "optimizer_type": "AdamW", "learning_rate": 1e-2}
    straight = elsewhere(place, "straight")
    train(pair_config(straight, {"apart": True}, **options), spec=FAKE_PAIR)
    reached = kill_and_finish(processes, place, 2, seed=4, pair=chosen, **options)
    for name in ("lora-low", "lora-high"):
        assert same(lora(place, name), lora(straight, name)), name
    assert any(0 < step < STEPS for step in reached), "at least one kill hit the middle of the run"


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamWScheduleFree", "Adafactor"])
def test_two_resumes_across_an_epoch_end_equal_one_run(place, optimizer):
    """7 items in batches of 2 make 4 batches, 2 steps an epoch: stops at 3 and 5 lie inside epochs."""
    options = {"optimizer_type": optimizer, "gradient_accumulation_steps": 2, "network_dropout": 0.1}
    run(place, **options)
    straight = lora(place)
    parts = elsewhere(place, "parts")
    for stop_at in (3, 5, None):
        result, _ = run(parts, stop_at=stop_at, resume="auto", **options)
        assert result.stopped == (stop_at is not None)
    assert same(straight, lora(parts))


def test_looking_at_averaged_weights_does_not_move_a_schedule_free_run(place):
    """Saving and validating swap in the average; the way back must not round."""
    options = {"optimizer_type": "AdamWScheduleFree", "validation_split": 0.2}
    run(place, **options)
    quiet = lora(place)
    busy = elsewhere(place, "busy")
    run(busy, save_every_n_steps=1, validate_every_n_steps=1, **options)
    assert same(quiet, lora(busy))


def test_a_state_of_any_kind_can_be_named(place):
    run(place, save_state=True, save_every_n_epochs=1, save_every_n_steps=3)
    straight = lora(place)
    for name in ("lora-step00000003-state", "lora-000001-state", "lora-state"):
        again = elsewhere(place, f"from_{name}")
        result, seen = run(again, resume=str(place["output_dir"] / name))
        assert same(straight, lora(again)), name
        assert result.step == 8
        assert any("Going on from step" in event.text for event in seen if isinstance(event, Note))


def test_auto_takes_the_newest_state_and_starts_afresh_without_one(place):
    _, seen = run(place, stop_at=2, resume="auto")
    assert any("no state of lora" in event.text for event in seen if isinstance(event, Note))
    run(place, stop_at=5, resume="auto", save_every_n_steps=4, save_state=True)
    (place["output_dir"] / "lora-step00000007-state").mkdir()  # what a crash of another program may leave
    _, seen = run(place, stop_at=6, resume="auto")
    assert any("Going on from step 5" in event.text for event in seen if isinstance(event, Note))
    assert any("Not used to resume" in event.text for event in seen if isinstance(event, Warned))


def test_a_state_of_another_name_is_left_alone(place):
    run(place, stop_at=2, output_name="lora-000002")
    _, seen = run(place, stop_at=1, resume="auto", output_name="lora")
    assert any("no state of lora" in event.text for event in seen if isinstance(event, Note))


def test_a_longer_run_goes_on_from_its_end(place):
    run(place, max_train_steps=5, save_state_on_train_end=True)
    run(place, max_train_steps=8, resume="auto")
    longer = lora(place)
    straight = elsewhere(place, "straight")
    run(straight, max_train_steps=8)
    assert same(longer, lora(straight))
    assert [line["step"] for line in read_metrics(place["output_dir"] / "lora.metrics.jsonl")] == list(
        range(1, 9)
    )


def test_a_finished_run_is_not_trained_again(place):
    run(place, save_state_on_train_end=True)
    before = lora(place)
    result, seen = run(place, resume="auto", save_state_on_train_end=True)
    assert result.step == 8
    assert not [event for event in seen if isinstance(event, Metrics)]
    assert same(before, lora(place))


def test_a_changed_run_is_refused_with_old_and_new_values(place, tmp_path):
    run(place, stop_at=3)
    with pytest.raises(ConfigError) as error:
        run(place, resume="auto", seed=8, learning_rate=2e-2, gradient_accumulation_steps=2, network_dim=3)
    text = str(error.value)
    for part in (
        "learning_rate: 0.01 then, 0.02 now",
        "network_dim: 2 then, 3 now",
        "seed: 7 then, 8 now",
        "batches per step (accumulation x processes): 1 then, 2 now",
        "--network_weights",
    ):
        assert part in text


def test_a_changed_dataset_is_refused(place, tmp_path):
    run(place, stop_at=3)
    for path in (tmp_path / "cache").glob("item00_*"):
        path.unlink()
    with pytest.raises(ConfigError, match="dataset: 7 items"):
        run(place, resume="auto")


def test_a_changed_base_model_is_refused_but_a_moved_one_is_not(place, tmp_path):
    run(place, stop_at=3)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(place["dit"], moved)
    run({**place, "dit": moved}, resume="auto", stop_at=4)
    write_workplace(tmp_path / "other", hidden=24)
    with pytest.raises(ConfigError, match="dit: "):
        run({**place, "dit": tmp_path / "other" / "fake.safetensors"}, resume="auto")


@pytest.mark.parametrize(
    "change",
    [
        {"max_train_steps": 12},
        {"save_every_n_steps": 2},
        {"training_comment": "other"},
        {"max_data_loader_n_workers": 0},
        {"gradient_checkpointing": True},
        {"validate_every_n_steps": 1, "validation_split": 0.2},
    ],
)
def test_harmless_changes_are_allowed(place, change):
    run(place, stop_at=3, validation_split=0.2)
    result, _ = run(place, resume="auto", **{"validation_split": 0.2, **change})
    assert result.step == change.get("max_train_steps", 8)


def test_a_longer_run_on_a_falling_schedule_is_warned_about(place):
    run(place, stop_at=3, lr_scheduler="cosine")
    _, seen = run(place, resume="auto", lr_scheduler="cosine", max_train_steps=12)
    assert any("on another curve" in event.text for event in seen if isinstance(event, Warned))


def test_a_shorter_run_than_the_state_is_refused(place):
    run(place, stop_at=6)
    with pytest.raises(ConfigError, match=r"step 6, beyond the 4 steps"):
        run(place, resume="auto", max_train_steps=4)


def test_a_random_seed_is_kept(place):
    run(place, stop_at=3, seed=None)
    first = read_state(place["output_dir"] / "lora-step00000003-state").seed
    result, _ = run(place, resume="auto", seed=None)
    assert result.seed == first


def test_retention_survives_a_resume(place):
    options = {"save_every_n_steps": 1, "save_last_n_steps": 2, "save_state": True}
    run(place, stop_at=4, **options)
    run(place, resume="auto", **options)
    names = sorted(path.name for path in place["output_dir"].glob("lora-step*.safetensors"))
    assert names == ["lora-step00000006.safetensors", "lora-step00000007.safetensors"]


def test_refused_steps_in_a_row_are_counted_across_a_resume(place):
    """Stopping and starting must not make a broken run endless."""
    config = dataclasses.replace(
        config_for(place, resume="auto"), arch_options=FAKE.train_options(explode_at=-1.0)
    )
    seen: list = []
    train(config, seen.append, lambda: any(isinstance(e, Metrics) for e in seen), spec=FAKE)
    assert read_state(place["output_dir"] / "lora-step00000001-state").refused == 1


@pytest.mark.parametrize("damage", ["missing", "cut", "version", "tensors"])
def test_a_damaged_state_is_explained(place, damage):
    run(place, stop_at=2)
    folder = place["output_dir"] / "lora-step00000002-state"
    record = folder / "state.json"
    if damage == "missing":
        record.unlink()
    elif damage == "cut":
        record.write_text(record.read_text()[:50])
    elif damage == "version":
        record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    else:
        data = (folder / "tensors.safetensors").read_bytes()
        (folder / "tensors.safetensors").write_bytes(data[:-10])
    with pytest.raises(BadFileError, match="lora-step00000002-state"):
        run(place, resume=str(folder))


def test_a_state_holds_no_pickle(place):
    run(place, stop_at=2)
    names = {path.name for path in (place["output_dir"] / "lora-step00000002-state").rglob("*")}
    assert names == {"state.json", "tensors.safetensors"}


def test_a_state_comes_back_as_it_was(tmp_path):
    state = RunState(
        output_name="a b",
        step=3,
        epoch=1,
        position=2,
        seed=5,
        session_id=6,
        started_at=1.5,
        together=1,
        total=9,
        kept=True,
        options={"betas": [0.9, 0.99], "nothing": None},
        identities={"dit": "x"},
        losses=(0.1, 0.2),
        loss_scale=(65536.0, 3),
        optimizer={
            "state": {0: {"step": torch.tensor(3.0), "n": float("inf")}},
            "param_groups": [{"b": (1, 2)}],
        },
        network={"a": torch.randn(2, 3)},
    )
    write_state(tmp_path / "x-state", state)
    back = read_state(tmp_path / "x-state")
    assert torch.equal(back.network["a"], state.network["a"])
    assert back.optimizer["state"][0]["n"] == float("inf")
    assert back.optimizer["param_groups"] == [{"b": (1, 2)}]
    assert dataclasses.replace(back, network={}, optimizer=None) == dataclasses.replace(
        state, network={}, optimizer=None
    )


def test_names_with_spaces_and_letters_of_other_scripts_work(tmp_path):
    place = write_workplace(tmp_path / "mit Leerzeichen ü 日本")
    named = {**place, "output_name": "kätzchen [v1] 猫"}
    run(named, stop_at=3)
    result, seen = run(named, resume="auto")
    assert any("Going on from step 3" in event.text for event in seen if isinstance(event, Note))
    assert result.lora == Path(named["output_dir"]) / "kätzchen [v1] 猫.safetensors"
    assert result.lora.is_file()
