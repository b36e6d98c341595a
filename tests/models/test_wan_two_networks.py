"""Wan 2.2 A14B with both of its networks: one LoRA for both, or a pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_wan_training import workplace
from wan_networks import make_network

from musubi_core.config import build
from musubi_core.files.tensors import write_tensors
from musubi_core.models.wan.options import TrainOptions
from musubi_core.models.wan.spec import SPEC
from musubi_core.training.config import TrainConfig
from musubi_core.training.loop import TrainResult
from musubi_core.training.run import train

BOUNDARIES = {"t2v-14B": 0.875, "i2v-A14B": 0.9}  # by the layout of a network; t2v-A14B has that of t2v-14B


def both(folder: Path, task: str) -> dict[str, Any]:
    """A place to train two networks of the layout of `task`; the second is `high.safetensors`."""
    place = workplace(folder, task)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        write_tensors(folder / "high.safetensors", make_network(task, heads=1).state_dict())
    return place


def run(place: dict[str, Any], called: list[tuple[int, list[float]]], **options: Any) -> TrainResult:
    """Eight steps on both networks; `called` gets each call's network and noise levels."""

    def predict(network, x, t, conditioning, chosen):
        called.append((id(network), t.tolist()))
        return SPEC.predict(network, x, t, conditioning, chosen)

    values = {
        "max_train_steps": 8,
        "seed": 7,
        "network_dim": 2,
        "mixed_precision": "no",
        "timestep_sampling": "shift",
        "discrete_flow_shift": 5.0,
        "save_every_n_steps": 4,
        **place,
    }
    config = build(TrainConfig, values, where="the test")
    given = {"dit_high_noise": place["dit"].with_name("high.safetensors"), **options}
    chosen = TrainOptions(**given)
    return train(replace(config, arch_options=chosen), spec=replace(SPEC, predict=predict))


@pytest.mark.parametrize("task", ["t2v-14B", "i2v-A14B"])
@pytest.mark.parametrize("offload", [False, True])
def test_one_lora_is_trained_on_both_networks(tmp_path: Path, task: str, offload: bool):
    called: list[tuple[int, list[float]]] = []
    result = run(both(tmp_path, task), called, offload_inactive_dit=offload)
    assert [path.name for path in result.loras] == ["lora.safetensors"]
    boundary = BOUNDARIES[task]
    sides = {
        network: {t >= boundary for other, ts in called if other == network for t in ts}
        for network, _ in called
    }
    assert sorted(map(list, sides.values())) == [[False], [True]], (
        "each network on its own side, and both used"
    )
    with safe_open(result.loras[0], "pt") as file:
        facts = file.metadata()
    assert facts["ss_sd_model_name"] == f"{task}.safetensors, high.safetensors"
    assert json.loads(facts["ss_experts"]) == {
        "low_noise": [0, 1000 * boundary],
        "high_noise": [1000 * boundary, 1000],
    }


def test_a_pair_is_a_file_for_each_network(tmp_path: Path):
    result = run(both(tmp_path, "t2v-14B"), [], expert_loras="pair")
    assert [path.name for path in result.loras] == [
        "lora-low_noise.safetensors",
        "lora-high_noise.safetensors",
    ]
    low, high = (load_file(path) for path in result.loras)
    assert low.keys() == high.keys()
    assert "lora_unet_blocks_0_self_attn_q.lora_up.weight" in low
    for tensors in (low, high):
        assert any(value.any() for key, value in tensors.items() if key.endswith("lora_up.weight"))
    for side in ("low_noise", "high_noise"):
        assert (tmp_path / "out" / f"lora-step00000004-{side}.safetensors").is_file()


def test_a_run_goes_on_with_files_moved_and_the_idle_network_waiting(tmp_path: Path):
    """Where the second network lies, and where it waits, decide nothing."""
    place = both(tmp_path, "t2v-14B")
    straight = run(place, [], expert_loras="pair")
    folder = place["output_dir"]
    for path in straight.loras:
        path.rename(path.with_stem(f"straight-{path.stem}"))
    state = str(folder / "lora-step00000004-state")
    moved = place["dit"].with_name("high.safetensors").rename(tmp_path / "moved.safetensors")
    again = run(
        {**place, "resume": state}, [], expert_loras="pair", offload_inactive_dit=True, dit_high_noise=moved
    )
    for path in again.loras:
        expected = load_file(path.with_stem(f"straight-{path.stem}"))
        assert all(torch.equal(value, expected[key]) for key, value in load_file(path).items())
