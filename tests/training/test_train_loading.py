"""Before the first step: a run can be stopped while it loads, and a bad file is named; nothing is written."""

from __future__ import annotations

import pytest
from fake_arch import config_for, write_workplace
from test_fp8_run import HIDDEN, SCALED, SPEC

from musubi_core.errors import BadFileError, MusubiError
from musubi_core.events import Note, Progress
from musubi_core.training.run import train


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path, hidden=4 * HIDDEN)


def told_of_loading(events) -> list[int]:
    return [event.done for event in events if isinstance(event, Progress) and event.stage == "load"]


@pytest.mark.parametrize("options", [{}, SCALED], ids=["as it is", "fp8"])
def test_a_run_stopped_while_it_loads_ends_at_once_and_leaves_nothing(place, options):
    events: list = []
    train(config_for(place, max_train_steps=1, output_name="whole", **options), events.append, spec=SPEC)
    tensors = len(told_of_loading(events))
    assert tensors > 4
    before = sorted(place["output_dir"].iterdir())
    for last in (0, 1, tensors - 2):
        events.clear()
        stop = lambda last=last: len(told_of_loading(events)) > last  # noqa: E731
        result = train(config_for(place, **options), events.append, stop, spec=SPEC)
        assert (result.stopped, result.step, result.lora) == (True, 0, None)
        assert len(told_of_loading(events)) == last + 1, "no tensor more was read"
        assert any("Nothing was trained" in event.text for event in events if isinstance(event, Note))
        assert sorted(place["output_dir"].iterdir()) == before


def test_a_run_stopped_while_it_loads_can_be_resumed_from_the_same_state(place):
    train(config_for(place, max_train_steps=2, save_state_on_train_end=True), spec=SPEC)
    state = str(place["output_dir"] / "lora-state")
    stopped = train(config_for(place, resume=state), should_stop=lambda: True, spec=SPEC)
    assert (stopped.stopped, stopped.step, stopped.total) == (True, 2, 8)
    assert train(config_for(place, resume=state), spec=SPEC).step == 8


@pytest.mark.parametrize("kept", [0, 7, 400, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named_before_anything_is_trained(place, kept):
    whole = place["dit"].read_bytes()
    place["dit"].write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(BadFileError, match=r"fake\.safetensors"):
        train(config_for(place), spec=SPEC)
    assert not list(place["output_dir"].glob("*"))


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 no zip at all", b"<!DOCTYPE html><p>404", b"\x80\x02}q\x00."]
)
def test_something_else_under_the_name_of_a_checkpoint_is_named(place, content):
    place["dit"].write_bytes(content)
    with pytest.raises(MusubiError, match=r"fake\.safetensors"):
        train(config_for(place), spec=SPEC)
    assert not list(place["output_dir"].glob("*"))
