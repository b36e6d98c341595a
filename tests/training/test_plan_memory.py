"""Predicted memory against what torch's own allocator reports of real steps, for every architecture."""

from __future__ import annotations

import pytest
import torch
from plan_stage import Stage, counted_by_torch, stage_of

from musubi_core.models.registry import SPECS, architecture
from musubi_core.models.swapping import start_swap
from musubi_core.training.loading import load_experts
from musubi_core.training.plan.memory import BUFFERS, memory_of, swap_bytes
from musubi_core.training.plan.optimizer import state_bytes
from musubi_core.training.plan.rehearsal import rehearse

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
