"""A model of two networks, each for its noise levels: who is trained on what, and what is written."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from fake_arch import FAKE, FAKE_PAIR, PairOptions, config_for, pair_config, write_second, write_workplace
from safetensors import safe_open
from safetensors.torch import load_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Metrics, Note
from musubi_core.offload import experts as experts_module
from musubi_core.offload.experts import Experts, exchange
from musubi_core.training.gradients import FlatGradients
from musubi_core.training.loop import side_by_side
from musubi_core.training.loras import start_file
from musubi_core.training.metrics import read_metrics
from musubi_core.training.run import train
from musubi_core.training.state import read_state

BOUNDARY = PairOptions().boundary
NETWORKS = {"fake": (0.0, BOUNDARY), "high": (BOUNDARY, 1.0)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path):
    made = write_workplace(tmp_path)
    write_second(made)
    return made


def recording(calls: list, spec=FAKE_PAIR):
    """The spec, noting which network was called with which t, and whether for training."""

    def predict(net, x, t, conditioning, options):
        calls.append((net.source, t.tolist(), torch.is_grad_enabled()))
        return FAKE.predict(net, x, t, conditioning, options)

    return dataclasses.replace(spec, predict=predict)


def run(place, pair=None, *, spec=FAKE_PAIR, stop_at=None, **options):
    seen: list = []

    def stop() -> bool:
        return stop_at is not None and any(isinstance(e, Metrics) and e.step >= stop_at for e in seen)

    result = train(pair_config(place, pair or {}, **options), seen.append, stop, spec=spec)
    return result, seen


def elsewhere(place, name: str):
    return {**place, "output_dir": place["output_dir"].with_name(name)}


def lora(place, name="lora"):
    return load_file(place["output_dir"] / f"{name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def moved(tensors) -> bool:
    return any(value.any() for key, value in tensors.items() if key.endswith("lora_up.weight"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_timestep_buckets": 3},
        {"timestep_sampling": "musubi_sigma"},
        {"gradient_accumulation_steps": 4},
        {"min_timestep": 300, "max_timestep": 800},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_no_network_is_ever_called_with_a_noise_level_of_the_other(place, options):
    calls: list = []
    run(place, spec=recording(calls), max_train_steps=24, validation_split=0.2, **options)
    for source, levels, _ in calls:
        low, high = NETWORKS[source]
        assert all(low <= t < high for t in levels), (source, levels)
    assert {(source, training) for source, _, training in calls} == {
        (source, training) for source in NETWORKS for training in (True, False)
    }


def test_validation_asks_each_network_for_its_noise_levels_at_a_stretch(place):
    calls: list = []
    result, _ = run(
        place,
        spec=recording(calls),
        validation_split=0.4,
        validate_every_n_steps=4,
        max_train_steps=4,
    )
    measured = [source for source, _, training in calls if not training]
    assert len(measured) >= 8
    assert sum(a != b for a, b in pairwise(measured)) == 1
    lines = [line for line in read_metrics(result.metrics) if "loss/validation" in line]
    assert len([key for key in lines[-1] if key.startswith("loss/validation_q")]) == 4
    parts = [value for key, value in lines[-1].items() if key.startswith("loss/validation_q")]
    assert lines[-1]["loss/validation"] == pytest.approx(sum(parts) / 4)


def test_a_shared_lora_is_one_file_that_names_both_networks(place):
    result, _ = run(place, max_train_steps=12)
    assert result.loras == (place["output_dir"] / "lora.safetensors",)
    assert moved(lora(place))
    with safe_open(result.lora, "pt") as file:
        facts = file.metadata()
    assert facts["ss_sd_model_name"] == "fake.safetensors, high.safetensors"
    assert json.loads(facts["ss_experts"]) == {"low": [0, 600], "high": [600, 1000]}
    assert facts["ss_second"] == "high.safetensors", "a path tells where, a name is enough"
    assert "modelspec.timestep_range" not in facts


def test_a_pair_is_two_files_named_and_described_by_their_expert(place):
    result, _ = run(
        place,
        {"apart": True},
        save_every_n_steps=3,
        save_every_n_epochs=1,
        max_train_steps=8,
        no_metadata=True,
    )
    names = sorted(path.name for path in place["output_dir"].glob("*.safetensors"))
    bases = ("lora", "lora-000001", "lora-step00000003", "lora-step00000006")
    assert names == sorted(f"{base}-{side}.safetensors" for base in bases for side in ("low", "high"))
    assert [path.name for path in result.loras] == ["lora-low.safetensors", "lora-high.safetensors"]
    assert moved(lora(place, "lora-low"))
    assert moved(lora(place, "lora-high"))
    with safe_open(result.loras[1], "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["ss_experts"]) == {"high": [600, 1000]}, "needed to load it in the right place"
    assert facts["modelspec.timestep_range"] == "600,1000"
    assert facts["modelspec.title"] == "lora-high"


def test_retention_counts_saves_not_the_files_of_a_pair(place):
    run(place, {"apart": True}, save_every_n_steps=1, save_last_n_steps=2)
    names = sorted(path.name for path in place["output_dir"].glob("lora-step*.safetensors"))
    assert names == sorted(
        f"lora-step0000000{step}-{side}.safetensors" for step in (6, 7) for side in ("low", "high")
    )


def test_a_pair_learns_only_from_its_own_side(place):
    """After one step, only the LoRA of the network that was called has moved."""
    calls: list = []
    run(place, {"apart": True}, spec=recording(calls), max_train_steps=1, optimizer_type="SGD")
    (source, _, _) = calls[0]
    trained, idle = ("low", "high") if source == "fake" else ("high", "low")
    assert moved(lora(place, f"lora-{trained}"))
    assert not moved(lora(place, f"lora-{idle}"))


def test_a_step_without_batches_for_a_network_passes_its_lora_over(place):
    """No momentum, no weight decay: AdamW's own count of steps is the number of steps with a batch."""
    calls: list = []
    run(place, {"apart": True}, spec=recording(calls), max_train_steps=8, save_state_on_train_end=True)
    found = read_state(place["output_dir"] / "lora-state").optimizer
    counts = [found["state"][group["params"][0]]["step"].item() for group in found["param_groups"]]
    own = [sum(source == one for source, _, _ in calls) for one in NETWORKS]
    assert counts == own
    assert all(own)
    assert [group["name"] for group in found["param_groups"]] == ["unet low", "unet high"]


def test_unused_parts_have_no_gradient_and_get_it_back():
    parts = [[torch.nn.Parameter(torch.ones(3))] for _ in range(2)]
    flat = FlatGradients(*parts)
    (parts[1][0] * 2).sum().backward()
    flat.count(1)
    flat.leave_unused()
    assert parts[0][0].grad is None
    assert parts[1][0].grad.tolist() == [2.0] * 3
    flat.clear()
    assert parts[0][0].grad.tolist() == [0.0] * 3
    assert flat.used.tolist() == [0.0, 0.0]


def test_a_pair_goes_on_exactly_where_it_stopped(place):
    options = {"gradient_accumulation_steps": 2, "network_dropout": 0.1, "num_timestep_buckets": 3}
    run(place, {"apart": True}, **options)
    parts = elsewhere(place, "parts")
    for stop_at in (3, 5, None):
        run(parts, {"apart": True, "wait": stop_at == 5}, stop_at=stop_at, resume="auto", **options)
    for name in ("lora-low", "lora-high"):
        assert same(lora(place, name), lora(parts, name))


def test_a_state_is_only_for_the_same_two_networks(place, tmp_path):
    run(place, stop_at=3)
    second = place["dit"].with_name("high.safetensors")
    second.rename(tmp_path / "moved.safetensors")
    config = pair_config(place, {}, resume="auto", max_train_steps=4)
    config = dataclasses.replace(
        config, arch_options=dataclasses.replace(config.arch_options, second=tmp_path / "moved.safetensors")
    )
    assert train(config, spec=FAKE_PAIR).step == 4
    (tmp_path / "other").mkdir()
    other = write_second(write_workplace(tmp_path / "other", hidden=24))
    config = dataclasses.replace(config, arch_options=dataclasses.replace(config.arch_options, second=other))
    with pytest.raises(ConfigError, match="dit high: "):
        train(config, spec=FAKE_PAIR)
    with pytest.raises(ConfigError, match=r"dit high: .* then, none now"):
        train(config_for(place, resume="auto"), spec=FAKE)


@pytest.mark.parametrize("apart", [False, True])
def test_waiting_in_host_memory_changes_nothing(place, monkeypatch, apart):
    """The networks change places exactly when the side of a batch changes."""
    trades: list = []

    def trade(leaving, coming, device):
        leaving, coming = list(leaving), list(coming)
        trades.append((leaving, coming))
        exchange(leaving, coming, device)

    monkeypatch.setattr(experts_module, "exchange", trade)
    options = {"gradient_accumulation_steps": 4, "validation_split": 0.2, "save_every_n_steps": 2}
    calls: list = []
    run(place, {"apart": apart}, **options)
    assert all(not leaving and not coming for leaving, coming in trades)
    trades.clear()
    waiting = elsewhere(place, "waiting")
    run(waiting, {"apart": apart, "wait": True}, spec=recording(calls), **options)
    for name in ("lora-low", "lora-high") if apart else ("lora",):
        assert same(lora(place, name), lora(waiting, name))
    sources = ["fake", *(source for source, _, _ in calls)]
    assert len(trades) == sum(a != b for a, b in pairwise(sources))
    assert all(leaving and coming for leaving, coming in trades)


def test_a_step_calls_each_network_at_a_stretch_and_ends_where_the_next_begins(tmp_path):
    place = write_workplace(tmp_path, batch_size=1, repeats=4)
    write_second(place)
    calls: list = []
    run(place, spec=recording(calls), gradient_accumulation_steps=7, max_train_steps=8)
    sources = [source for source, _, _ in calls]
    assert min(sources.count("fake"), sources.count("high")) > 14
    assert sum(a != b for a, b in pairwise(sources)) <= 8

    batches = [SimpleNamespace(side=side) for side in (1, 0, 1, 0)]
    assert [one.side for one in side_by_side(batches, 0)] == [0, 0, 1, 1]
    assert [one.side for one in side_by_side(batches, 1)] == [1, 1, 0, 0]


class Weight:
    """Stands for a parameter on a machine with a GPU. on_gpu: all weights that are there now."""

    def __init__(self, device: str, on_gpu: set) -> None:
        self.data, self.device, self.on_gpu = self, device, on_gpu
        self.to(torch.device(device))

    def to(self, device: torch.device) -> Weight:
        self.device = device.type
        (self.on_gpu.add if device.type == "cuda" else self.on_gpu.discard)(self)
        return self


def test_an_exchange_never_holds_both_networks_on_the_device():
    on_gpu: set = set()
    most: list[int] = []

    def watched(weights):
        for weight in weights:
            most.append(len(on_gpu))
            yield weight

    leaving = [Weight("cuda", on_gpu) for _ in range(8)]
    coming = [Weight("cpu", on_gpu) for _ in range(10)]
    exchange(leaving, watched(coming), torch.device("cuda"))
    assert {weight.device for weight in leaving} == {"cpu"}
    assert {weight.device for weight in coming} == {"cuda"}
    assert max(most[:9]) == 8


def test_only_networks_that_wait_are_moved(monkeypatch):
    moves: list = []
    monkeypatch.setattr(
        experts_module, "exchange", lambda out, into, device: moves.append((len(list(out)), len(list(into))))
    )
    models = [torch.nn.BatchNorm1d(3) for _ in range(2)]  # two parameters and three buffers each
    experts = Experts(models, device=torch.device("cpu"), waits=(True, True))
    assert experts.at_work(0) is models[0]
    assert not moves
    assert experts.at_work(1) is experts.at_work(1) is models[1]
    assert moves == [(5, 5)]
    assert list(experts.order()) == [1, 0]
    Experts(models, device=torch.device("cpu"), waits=(False, True)).at_work(1)
    Experts(models, device=torch.device("cpu")).at_work(1)
    assert moves[1:] == [(0, 5), (0, 0)]


def test_an_idle_network_is_loaded_where_it_waits(place):
    asked: list = []

    def load(request):
        asked.append((request.path.stem, request.device))
        return FAKE.load(request)

    run(place, {"wait": True}, spec=dataclasses.replace(FAKE_PAIR, load=load), max_train_steps=1)
    assert asked == [("fake", torch.device("cpu")), ("high", experts_module.HOST)]


def test_a_network_without_noise_levels_is_not_loaded_and_the_run_says_so(place):
    loaded: list = []

    def load(request):
        loaded.append(request.path.stem)
        return FAKE.load(request)

    spec = dataclasses.replace(FAKE_PAIR, load=load)
    _, seen = run(place, {"apart": True}, spec=spec, min_timestep=600)
    assert loaded == ["high"]
    assert any(
        "fake.safetensors is not loaded: it is for timesteps 0 to 600" in event.text
        for event in seen
        if isinstance(event, Note)
    )
    assert [path.name for path in place["output_dir"].glob("*.safetensors")] == ["lora-high.safetensors"]


def test_with_one_network_in_range_training_is_that_of_this_network_alone(place):
    run(place, min_timestep=600)
    alone = {**elsewhere(place, "alone"), "dit": place["dit"].with_name("high.safetensors")}
    train(config_for(alone, min_timestep=600), spec=FAKE)
    ours, theirs = lora(place), lora(alone)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)


@pytest.mark.parametrize("apart", [False, True])
def test_base_weights_are_merged_into_every_network(place, apart):
    run(place, output_name="base")
    base = place["output_dir"] / "base.safetensors"
    _, seen = run(place, {"apart": apart}, base_weights=(base,), learning_rate=0.0)
    merged = [event.text for event in seen if isinstance(event, Note) and "was merged into" in event.text]
    assert len(merged) == 2
    assert "low base model" in merged[0]
    assert "high base model" in merged[1]


def test_a_pair_starts_from_a_pair_or_from_one_lora_for_both(place):
    run(place, {"apart": True})
    given = place["output_dir"] / "lora-high.safetensors"
    run(place, {"apart": True}, output_name="more", network_weights=given, learning_rate=0.0)
    for side in ("low", "high"):
        assert same(lora(place, f"lora-{side}"), lora(place, f"more-{side}"))
    run(place, output_name="single")
    given = place["output_dir"] / "single.safetensors"
    run(place, {"apart": True}, output_name="both", network_weights=given, learning_rate=0.0)
    assert same(lora(place, "both-low"), lora(place, "single"))
    assert same(lora(place, "both-high"), lora(place, "single"))


def test_half_of_a_pair_is_refused_before_anything_is_loaded(place, tmp_path):
    def load(request):
        raise AssertionError("the model was loaded")

    half = tmp_path / "x-low.safetensors"
    half.touch()
    with pytest.raises(BadFileError, match=r"x-low.safetensors is one LoRA of a set, but .*x-high"):
        run(place, {"apart": True}, spec=dataclasses.replace(FAKE_PAIR, load=load), network_weights=half)
    assert start_file(None, "low", ("low", "high")) is None
    assert start_file(half, "", ("", "")) == half


def test_a_limit_on_norms_holds_for_both_of_a_pair(place):
    result, _ = run(place, {"apart": True}, learning_rate=0.3, scale_weight_norms=0.5)
    assert read_metrics(result.metrics)[-1]["max_norm/max_key_norm"] <= 0.5 + 1e-4


def test_both_networks_are_compiled(place):
    torch._dynamo.reset()
    run(place, {"apart": True})
    compiled = elsewhere(place, "compiled")
    run(compiled, {"apart": True}, compile=True, compile_backend="eager")
    for name in ("lora-low", "lora-high"):
        assert same(lora(place, name), lora(compiled, name))


@pytest.mark.parametrize("optimizer", ["Prodigy", "AdamWScheduleFree", "Adafactor"])
def test_other_optimizers_take_a_pair(place, optimizer):
    rate = 1.0 if optimizer == "Prodigy" else 1e-2
    run(
        place,
        {"apart": True},
        optimizer_type=optimizer,
        learning_rate=rate,
        max_train_steps=12,
        save_every_n_steps=2,
        validation_split=0.2,
    )
    assert moved(lora(place, "lora-low"))
    assert moved(lora(place, "lora-high"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_idle_network_is_in_host_memory(place):
    seen: list = []

    def predict(net, x, t, conditioning, options):
        seen.append({parameter.device.type for parameter in net.parameters()})
        return FAKE.predict(net, x, t, conditioning, options)

    spec = dataclasses.replace(FAKE_PAIR, predict=predict)
    run(place, {"wait": True}, spec=spec, mixed_precision="no", max_train_steps=12)
    waiting = lora(place)
    run(elsewhere(place, "both"), {}, mixed_precision="no", max_train_steps=12)
    assert all(devices == {"cuda"} for devices in seen)
    assert same(waiting, lora(elsewhere(place, "both")))
