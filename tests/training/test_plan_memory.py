"""Predicted memory against what torch's own allocator reports of real steps, for every architecture."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from plan_stage import CPU, Stage, counted_by_torch, stage_of

from musubi_core.device.streams import CopyStream
from musubi_core.models.registry import SPECS, architecture
from musubi_core.models.spec import Expert
from musubi_core.models.swapping import start_swap
from musubi_core.offload.activations import activations_on_host
from musubi_core.offload.config import SwapConfig
from musubi_core.offload.experts import Experts
from musubi_core.training.loading import attach_loras, load_experts
from musubi_core.training.plan.memory import BUFFERS, memory_of, swap_bytes
from musubi_core.training.plan.optimizer import state_bytes
from musubi_core.training.plan.rehearsal import ADAPTERS, SCALES, WEIGHTS, rehearse
from musubi_core.training.processes import Processes

WAYS = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"mixed_precision": "bf16"},
    "fp8": {"fp8_base": True, "fp8_scaled": True, "mixed_precision": "bf16"},
    "fp16": {"mixed_precision": "fp16", "gradient_checkpointing": True},
    "plain fp8": {"fp8_base": True, "mixed_precision": "bf16", "gradient_checkpointing": True},
    "fp8 by row": {
        "fp8_base": True,
        "fp8_scaled": True,
        "fp8_granularity": "channel",
        "gradient_checkpointing": True,
    },
    "rank 32": {"network_dim": 32, "gradient_checkpointing": True, "mixed_precision": "bf16"},
    "dropout": {"network_dropout": 0.1, "network_args": ["module_dropout=0.1"]},
}
CROWDS = [  # the same with larger batches
    ("plain", 2),
    ("fp8", 2),
    ("bf16", 3),
    ("rank 32", 4),
    ("plain fp8", 4),
]


@pytest.fixture(scope="module", params=list(SPECS))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    spec = architecture(request.param)
    return stage_of(spec, tmp_path_factory.mktemp(spec.name))


@pytest.mark.parametrize(("way", "count"), [*((way, 1) for way in WAYS), *CROWDS])
def test_predicted_memory_is_what_torch_allocates(stage: Stage, way: str, count: int):
    opened = stage.opened(**WAYS[way])
    prepared = stage.prepared(opened, count)
    predicted = memory_of(opened, rehearse(opened, prepared)).tensors
    if way == "dropout":  # the prediction is for a step in which no adapter is left out
        opened = stage.opened(**WAYS[way] | {"network_args": []})
    counted = counted_by_torch(opened, prepared)
    assert predicted == pytest.approx(counted, rel=0.1)


def test_it_is_that_for_every_kind_of_network_the_architecture_accepts(stage: Stage):
    for module in stage.spec.network_modules[1:]:
        opened = stage.opened(network_module=module, gradient_checkpointing=True, mixed_precision="bf16")
        prepared = stage.prepared(opened, 1)
        predicted = memory_of(opened, rehearse(opened, prepared)).tensors
        assert predicted == pytest.approx(counted_by_torch(opened, prepared), rel=0.1), module


@pytest.mark.parametrize("loras", [("", ""), ("low", "high")], ids=["one LoRA", "two LoRAs"])
def test_two_networks_are_both_predicted(stage: Stage, loras: tuple[str, str]):
    spec = replace(stage.spec, experts=partial(two_experts, loras))
    opened = replace(stage, spec=spec).opened(gradient_checkpointing=True, mixed_precision="bf16")
    prepared = stage.prepared(opened, 2)
    memory = memory_of(opened, rehearse(opened, prepared))
    assert memory.tensors == pytest.approx(counted_by_torch(opened, prepared), rel=0.1)
    one = stage.opened(gradient_checkpointing=True, mixed_precision="bf16")
    alone = memory_of(one, rehearse(one, prepared)).device
    assert memory.device[WEIGHTS] == 2 * alone[WEIGHTS]
    assert memory.device[ADAPTERS] == len(set(loras)) * alone[ADAPTERS]


def two_experts(loras: tuple[str, str], dit: Path, options: object) -> tuple[Expert, ...]:
    low = Expert(path=dit, name="low", t_max=0.5, lora=loras[0])
    return low, Expert(path=dit, name="high", t_min=0.5, lora=loras[1])


def test_activations_in_host_memory_are_predicted_to_the_byte(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    opened = stage.opened(gradient_checkpointing=True, gradient_checkpointing_cpu_offload=True)
    prepared = stage.prepared(opened, 2)
    monkeypatch.setattr("musubi_core.training.plan.rehearsal.SMALLEST", 1)
    predicted = rehearse(opened, prepared).on_host
    model = load_experts(opened).models[0]
    loras = attach_loras(opened, Experts([model], device=CPU))
    with activations_on_host(model, CopyStream(CPU), smallest=1) as moved:
        stage.spec.predict(
            model, prepared.noisy, prepared.t, prepared.conditioning, opened.config.arch_options
        )
    loras.remove()
    assert predicted == sum(moved) > 0


def test_on_a_card_swapped_blocks_are_taken_off_it(stage: Stage):
    """Counted here, added up as for a card: the blocks' memory moves from the device to the host."""
    card = Processes(device=torch.device("cuda"), precision="bf16")
    counted = rehearse(stage.opened(), stage.prepared(stage.opened(), 1))
    most = stage.spec.swap.most([len(blocks) for blocks in counted.swappable])
    found = []
    for blocks in sorted({0, most // 2, most}):
        opened = stage.opened(gradient_checkpointing=True, blocks_to_swap=blocks)
        streamed, slots = swap_bytes(opened, counted.swappable)
        memory = memory_of(replace(opened, here=card), counted)
        assert memory.device[BUFFERS] == slots
        assert memory.host["swapped blocks"] == streamed + slots  # with what is pinned for copies
        found.append(memory.device[WEIGHTS] + memory.device[SCALES] + streamed)
        assert memory.overhead >= 500_000_000
    assert len(set(found)) == 1


def test_input_layers_that_visit_are_left_out_on_a_card_and_compute_the_same(stage: Stage):
    if not stage.spec.swap.visitors:
        pytest.skip("it has none")
    opened = stage.opened(gradient_checkpointing=True, img_in_txt_in_offloading=True)
    prepared = stage.prepared(opened, 1)
    counted = rehearse(opened, prepared)
    card = Processes(device=torch.device("cuda"), precision="bf16")
    memory = memory_of(replace(opened, here=card), counted)
    found = []
    for swapping in (False, True):
        model = load_experts(opened).models[0]
        options = opened.config.swap if swapping else SwapConfig()
        held = start_swap(stage.spec, options, model, CPU)
        loras = attach_loras(opened, Experts([model], device=CPU))
        velocity = stage.spec.predict(
            model, prepared.noisy, prepared.t, prepared.conditioning, opened.config.arch_options
        )
        velocity.square().sum().backward()
        found.append([velocity, *(weight.grad for weight in loras.parts()[0])])
        loras.remove()
        held.release()
        if held.visits is not None:
            assert counted.visiting == held.visits.host_bytes == memory.host["input layers"]
    assert all(map(torch.equal, *found))
    assert memory.device[WEIGHTS] == counted.at_peak[WEIGHTS] - counted.visiting


def test_the_parts_are_what_they_are_called(stage: Stage):
    opened = stage.opened(fp8_base=True, fp8_scaled=True)
    parts = rehearse(opened, stage.prepared(opened, 1)).at_peak
    models = load_experts(opened).models
    tensors = [one for model in models for one in (*model.named_parameters(), *model.named_buffers())]
    scales = sum(one.nbytes for name, one in tensors if name.endswith("scale_weight"))
    assert parts["fp8 scales"] == scales
    assert parts["base weights"] == sum(one.nbytes for _, one in tensors) - scales


def test_a_plan_reads_no_weight(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def read(*args: object, **how: object) -> None:
        raise AssertionError("a weight was read")

    for name in ("read_unscaled", "read_fp8_layers"):
        monkeypatch.setattr(f"musubi_core.encoders.loading.{name}", read)
    opened = stage.opened(fp8_base=True, fp8_scaled=True)
    assert rehearse(opened, stage.prepared(opened, 1)).peak > 0


def test_checkpointing_and_fp8_are_predicted_to_save_memory(stage: Stage):
    found = [stage.opened(**WAYS[way]) for way in ("bf16", "rank 32", "fp8")]
    plain, _, fp8 = (rehearse(opened, stage.prepared(opened, 2)) for opened in found)
    saving = stage.opened(gradient_checkpointing=True, mixed_precision="bf16")
    assert rehearse(saving, stage.prepared(saving, 2)).peak < plain.peak
    assert fp8.at_peak["base weights"] < plain.at_peak["base weights"]


@pytest.mark.parametrize("ring", [1, 2])
def test_swapped_blocks_take_what_the_ring_says(stage: Stage, ring: int):
    lists = rehearse(stage.opened(), stage.prepared(stage.opened(), 1)).swappable
    most = stage.spec.swap.most([len(blocks) for blocks in lists])
    opened = stage.opened(
        gradient_checkpointing=True, blocks_to_swap=most, block_swap_ring_size=ring, mixed_precision="bf16"
    )
    counted = rehearse(opened, stage.prepared(opened, 1))
    model = load_experts(opened).models[0]
    swap = start_swap(opened.spec, opened.config.swap, model, torch.device("cpu"))
    try:
        host = sum(one.host_bytes for one in swap.rings)
        device = sum(one.device_bytes for one in swap.rings)
        assert swap_bytes(opened, counted.swappable) == pytest.approx((host, device), rel=0.01)
        assert memory_of(opened, counted).device[BUFFERS] == pytest.approx(device, rel=0.01)
    finally:
        swap.release()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("AdamW", (), 2 * 4 * (64 * 32 + 10) + 2 * 4),
        ("SGD", (), 0),
        ("SGD", ("momentum=0.9",), 4 * (64 * 32 + 10)),
        ("Adagrad", (), 4 * (64 * 32 + 10) + 2 * 4),
    ],
)
def test_states_of_optimizers_are_found_out_by_a_step(name: str, arguments: tuple[str, ...], expected: int):
    from musubi_core.training.options.optimizer import OptimizerOptions

    options = OptimizerOptions(optimizer_type=name, optimizer_args=arguments)
    assert state_bytes(options, [(64, 32), (10,)]) == expected
