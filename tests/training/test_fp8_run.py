"""Training on a base model in 8 bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fake_arch import FAKE, HIDDEN, FakeNet, config_for, write_workplace
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from musubi_core.encoders.loading import fill
from musubi_core.errors import ConfigError
from musubi_core.events import Metrics, Note, Warned
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.models.spec import LoadRequest
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.training.run import train

SCALED = {"fp8_base": True, "fp8_scaled": True}


def load(request: LoadRequest) -> nn.Module:
    with torch.device("meta"):
        net = FakeNet(4 * HIDDEN)
    with open_checkpoint(request.path) as checkpoint:
        fill(
            net,
            checkpoint,
            {name: name for name in net.state_dict()},
            device=request.device,
            dtype_of=lambda name: request.dtype,
            transform=request.transform,
            quantisation=request.quantisation,
            watch=request.watch,
        )
    loaded.append(net)
    return net


loaded: list[nn.Module] = []
SPEC = dataclasses.replace(FAKE, load=load, fp8_targets=("blocks",), keep_precise=("norm",))


@pytest.fixture
def place(tmp_path):
    return write_workplace(tmp_path, hidden=4 * HIDDEN)


def run(place, *, stop_at: int | None = None, spec=SPEC, **options):
    events: list = []

    def stop() -> bool:
        return stop_at is not None and any(isinstance(e, Metrics) and e.step >= stop_at for e in events)

    train(config_for(place, **options), events.append, stop, spec=spec)
    return events


def losses(events) -> list[float]:
    return [event.values["loss/current"] for event in events if isinstance(event, Metrics)]


def test_a_run_in_fp8_says_what_it_costs_and_learns_nearly_the_same(place):
    precise = losses(run(place, output_name="precise"))
    events = run(place, **SCALED)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(
        text.startswith("4 layers are in fp8, scaled; relative error of the weights: ") for text in notes
    )
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert not any("fp8 already" in text or "--fp8_fast" in text for text in warned)
    assert losses(events) == pytest.approx(precise, rel=0.05)
    assert losses(events) != precise
    layers = [module for module in loaded[-1].modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 4
    assert not any(layer.weight.requires_grad for layer in layers)
    with safe_open(place["output_dir"] / "lora.safetensors", "pt") as file:
        assert (file.metadata()["ss_fp8_base"], file.metadata()["ss_fp8_scaled"]) == ("True", "True")


def test_a_plain_cast_is_trained_on_too(place):
    events = run(place, fp8_base=True)
    assert any(
        "4 layers are in fp8, without scales" in event.text for event in events if isinstance(event, Note)
    )
    assert all(layer.scale_weight is None for layer in loaded[-1].modules() if isinstance(layer, Fp8Linear))


def test_a_resumed_run_in_fp8_ends_with_the_same_lora(place):
    run(place, output_name="whole", **SCALED)
    run(place, save_state=True, stop_at=3, **SCALED)
    run(place, resume=str(place["output_dir"] / "lora-step00000003-state"), **SCALED)
    whole, parts = (load_file(place["output_dir"] / f"{name}.safetensors") for name in ("whole", "lora"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_cannot_go_on_in_another_precision(place):
    run(place, save_state=True, stop_at=3, **SCALED)
    state = str(place["output_dir"] / "lora-step00000003-state")
    with pytest.raises(ConfigError, match=r"fp8_scaled: True then, False now"):
        run(place, resume=state, fp8_base=True)
    with pytest.raises(ConfigError, match=r"fp8_granularity: not set then, channel now"):
        run(place, resume=state, fp8_granularity="channel", **SCALED)


def test_a_card_that_cannot_multiply_in_fp8_is_named_and_the_run_goes_on(place):
    events = run(place, fp8_fast=True, fp8_granularity="channel", **SCALED)
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert any("--fp8_fast: 4 of 4 layers" in text and "this is cpu" in text for text in warned)
    assert len(losses(events)) == 8


def test_an_architecture_without_targets_refuses_before_loading(place):
    with pytest.raises(ConfigError, match="--fp8_base is not available for fake"):
        run(place, spec=FAKE, fp8_base=True)
