"""Averages kept beside the run. Oracle: the closed-form weights, over every step's LoRA."""

from __future__ import annotations

import pytest
import torch
from fake_arch import FAKE, config_for, write_workplace
from safetensors import safe_open
from safetensors.torch import load_file

from musubi_core.errors import ConfigError
from musubi_core.events import Metrics
from musubi_core.lora_tools.ema import ema_merge
from musubi_core.lora_tools.ema_config import EmaConfig
from musubi_core.networks.power_ema import exponent_of, weights_at_steps
from musubi_core.training.run import train

WIDTHS = (0.05, 0.1)


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path)


def run(place, *, stop_at=None, **options):
    seen = []

    def stop():
        return stop_at is not None and any(isinstance(e, Metrics) and e.step >= stop_at for e in seen)

    options = {"max_train_steps": 12, "seed": 1, "ema_sigma_rel": WIDTHS, **options}
    return train(config_for(place, **options), seen.append, stop, spec=FAKE)


def lora(place, name):
    return load_file(place["output_dir"] / f"{name}.safetensors")


def test_an_average_is_the_power_function_of_every_steps_weights(place):
    run(place, save_every_n_steps=1)
    steps = [lora(place, f"lora-step{step:08d}") for step in range(1, 12)] + [lora(place, "lora")]
    for width in WIDTHS:
        weights = weights_at_steps(range(1, 13), exponent_of(width))
        for name, found in lora(place, f"lora-ema{width:g}").items():
            expected = sum(w * one[name].double() for w, one in zip(weights, steps, strict=True))
            torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_averages_change_nothing_of_what_is_trained(place):
    run(place)
    with_averages = lora(place, "lora")
    run(place, ema_sigma_rel=())
    assert all(torch.equal(tensor, with_averages[name]) for name, tensor in lora(place, "lora").items())


def test_a_resumed_run_keeps_the_same_averages(place):
    run(place)
    straight = [lora(place, f"lora-ema{width:g}") for width in WIDTHS]
    other = {**place, "output_dir": place["output_dir"].with_name("other")}
    run(other, stop_at=5)
    run(other, resume="auto")
    for width, expected in zip(WIDTHS, straight, strict=True):
        found = lora(other, f"lora-ema{width:g}")
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_an_average_cannot_begin_in_the_middle_of_a_run(place):
    run(place, stop_at=5, ema_sigma_rel=())
    with pytest.raises(ConfigError, match="cannot begin in the middle"):
        run(place, resume="auto")


def test_old_averages_make_room_with_their_loras(place):
    run(place, save_every_n_steps=2, save_last_n_steps=2)
    names = {path.name for path in place["output_dir"].glob("lora-step*.safetensors")}
    assert names == {
        f"lora-step{step:08d}{part}.safetensors" for step in (8, 10) for part in ("", "-ema0.05", "-ema0.1")
    }


def test_any_width_can_be_made_of_the_stored_ones_afterwards(place, tmp_path):
    run(place, save_every_n_steps=1, max_train_steps=16)
    stored = sorted(place["output_dir"].glob("lora-step*-ema*.safetensors"))
    stored += [place["output_dir"] / f"lora-ema{width:g}.safetensors" for width in WIDTHS]
    with safe_open(stored[0], "pt") as file:
        assert file.metadata()["musubi_core.ema_sigma_rel"] in ("0.05", "0.1")
    (path,) = ema_merge(
        EmaConfig(
            path=tuple(stored), output_file=tmp_path / "x.safetensors", sigma_rel=(0.15,), weighting="stored"
        )
    )
    steps = [lora(place, f"lora-step{step:08d}") for step in range(1, 16)] + [lora(place, "lora")]
    weights = weights_at_steps(range(1, 17), exponent_of(0.15))
    for name, found in load_file(path).items():
        expected = sum(w * one[name].double() for w, one in zip(weights, steps, strict=True))
        spread = (steps[-1][name].double() - steps[0][name].double()).abs().max()
        assert float((found.double() - expected).abs().max()) <= 0.03 * float(spread) + 1e-7
