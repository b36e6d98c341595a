"""`--plan`, `--check_fit`, and running out of memory."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from fake_arch import FAKE, config_for, write_workplace
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from musubi_core.errors import TrainingError
from musubi_core.events import Metrics, Note
from musubi_core.training.plan.disk import disk_use
from musubi_core.training.plan.planning import plan_run
from musubi_core.training.run import train


@pytest.fixture
def place(tmp_path: Path):
    return write_workplace(tmp_path, grids=((5, 8, 8),) * 4 + ((9, 8, 12),) * 2, hidden=64)


def notes(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_a_plan_names_steps_memory_disk_and_the_largest_item_and_trains_nothing(place):
    events: list = []
    result = train(config_for(place, plan=True, max_train_epochs=3), events.append, spec=FAKE)
    assert (result.lora, result.step) == (None, 0)
    assert not list(place["output_dir"].glob("*"))
    text = notes(events)[-1]
    assert "9 steps, 3 per epoch, 3 epochs of 6 items" in text
    assert re.search(r"2 x item0[45]_0096x0064_fake.safetensors, 96x64x33\.", text)
    for row in ("base weights", "adapters", "gradients", "optimizer states", "activations", "LoRA files (1)"):
        assert row in text


def test_a_plan_that_fits_says_so_and_suggests_nothing(place):
    plan = plan_run(config_for(place, vram_limit=1.0), FAKE)
    assert plan.fits
    assert plan.suggestions == ()
    assert "It fits" in plan.text()


def test_a_plan_that_does_not_fit_proposes_the_first_measure_that_is_enough(place):
    whole = plan_run(config_for(place), FAKE).memory.needed
    plan = plan_run(config_for(place, vram_limit=0.8 * whole / 1e9), FAKE)
    assert not plan.fits
    assert all(one.needed <= plan.limit for one in plan.suggestions)
    assert "21 frames" in plan.suggestions[0].text  # of 33; it has neither fp8 nor checkpointing
    assert plan.suggestions[0].text in plan.text()


def test_what_cannot_fit_is_said_to_be_so(place):
    plan = plan_run(config_for(place, vram_limit=1e-6), FAKE)
    assert "Even so it would not fit" in plan.text()


def test_the_check_of_the_fit_changes_no_bit_of_the_result(place):
    found = []
    for choice in ("never", "always"):
        events: list = []
        train(config_for(place, check_fit=choice, output_name=choice), events.append, spec=FAKE)
        losses = [event.values["loss/current"] for event in events if isinstance(event, Metrics)]
        found.append((losses, load_file(place["output_dir"] / f"{choice}.safetensors")))
        assert any("first pass on the largest batch" in text for text in notes(events)) == (
            choice == "always"
        )
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_on_a_cpu_the_fit_is_not_checked_unless_asked(place):
    events: list = []
    train(config_for(place, max_train_steps=1), events.append, spec=FAKE)
    assert not any("first pass" in text for text in notes(events))


def test_running_out_of_memory_says_what_was_too_large_and_what_would_help(place):
    calls = []

    def predict(net, x, t, conditioning, options):
        if not isinstance(x, FakeTensor):
            calls.append(x)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return FAKE.predict(net, x, t, conditioning, options)

    spec = dataclasses.replace(FAKE, predict=predict)
    whole = plan_run(config_for(place), FAKE).memory.needed
    with pytest.raises(TrainingError) as caught:
        train(config_for(place, vram_limit=0.8 * whole / 1e9), spec=spec)
    text = str(caught.value)
    assert re.match(
        r"Out of memory at step 2 on the largest item \(item0[45]_0096x0064_fake.safetensors, 96x64x33\): "
        r"needed \d+ kB, the limit is \d+ kB\. Cheapest ways to fit: 21 frames \(-",
        text,
    )
    assert list(place["output_dir"].glob("*-step00000002-state")), "what was trained is kept"


def test_running_out_of_memory_against_the_prediction_says_so_and_what_saves_a_tenth(place):
    def predict(net, x, t, conditioning, options):
        if not isinstance(x, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return FAKE.predict(net, x, t, conditioning, options)

    with pytest.raises(TrainingError) as caught:
        train(config_for(place, vram_limit=1.0), spec=dataclasses.replace(FAKE, predict=predict))
    text = str(caught.value)
    assert "Out of memory at step 0 on the largest item" in text
    assert "other programs may hold memory of the card" in text
    assert re.search(r"Cheapest ways to need a tenth less: .*frames \(-", text)


@pytest.mark.parametrize(
    "saving",
    [
        {},
        {"save_every_n_steps": 2},
        {"save_every_n_steps": 2, "save_last_n_steps": 1, "save_state": True},
        {"save_every_n_epochs": 1, "save_state": True, "save_precision": "bf16"},
        {"save_state_on_train_end": True},
    ],
)
def test_the_predicted_disk_space_is_what_a_run_leaves(tmp_path, saving):
    place = write_workplace(tmp_path, hidden=256)
    options = {"network_dim": 64, "max_train_steps": 8, "check_fit": "never", **saving}
    config = config_for(place, **options)
    disk = plan_run(config, FAKE).disk
    train(config, spec=FAKE)
    left = sum(path.stat().st_size for path in place["output_dir"].rglob("*") if path.is_file())
    replaced = disk["while one is replaced"]
    limit = 1 if "save_last_n_steps" in saving else 0  # the run keeps one file and state less at its end
    extra = limit * replaced * 1.4
    assert left <= sum(disk.values()) * 1.05 + 20_000
    assert left >= sum(disk.values()) - replaced - extra - 20_000


def test_kept_files_are_counted_at_the_fullest_moment():
    from musubi_core.training.options.saving import SavingOptions

    options = SavingOptions(output_dir=Path("x"), output_name="x", save_every_n_steps=10, save_last_n_steps=3)
    disk = disk_use(options, lora=100, state=300, steps=100, steps_per_epoch=7)
    assert disk["LoRA files (5)"] == 500  # three, the one that comes before one goes, and the last
    assert disk["run states (1)"] == 300


@pytest.mark.gpu
def test_on_a_card_the_prediction_is_what_torch_allocates(place):
    events: list = []
    train(config_for(place, max_train_steps=1, check_fit="always"), events.append, spec=FAKE)
    plan = plan_run(config_for(place), FAKE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(config_for(place, max_train_steps=3, check_fit="never"), spec=FAKE)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(plan.memory.tensors, rel=0.1)
