"""A run does not grow: as many tensors and bytes after 2,000 steps as after 20."""

from __future__ import annotations

import gc

import torch
from fake_arch import FAKE, config_for, write_workplace

from musubi_core.device.memory import host_memory
from musubi_core.events import Metrics
from musubi_core.training.run import train


def live_tensors() -> int:
    gc.collect()
    return sum(1 for one in gc.get_objects() if isinstance(one, torch.Tensor))


def test_memory_after_2000_steps_is_that_after_20(tmp_path):
    place = write_workplace(tmp_path, grids=[(1, 2, 2)] * 6)
    counts: dict[int, int] = {}
    resident: dict[int, int] = {}

    def emit(event):
        if isinstance(event, Metrics) and event.step in (20, 200, 2000):
            counts[event.step] = live_tensors()
            use = host_memory()
            resident[event.step] = use.allocated if use else 0

    train(
        config_for(place, max_train_steps=2000, max_data_loader_n_workers=0, validation_split=0.2),
        emit,
        spec=FAKE,
    )
    assert counts[2000] == counts[20]
    assert resident[2000] - resident[200] < 8e6


def test_a_finished_run_leaves_no_tensors_behind(tmp_path):
    place = write_workplace(tmp_path)
    config = config_for(place, max_train_steps=2)
    train(config, spec=FAKE)
    before = live_tensors()
    train(config, spec=FAKE)
    assert live_tensors() <= before
