"""Whole runs with swapped blocks, activations in host memory and compiled blocks: the LoRA is the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fake_arch import FAKE, FakeNet, config_for, write_workplace
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from musubi_core.errors import ConfigError
from musubi_core.events import Note, Warned
from musubi_core.models.spec import Expert, LoadRequest
from musubi_core.offload.groups import SwapRule
from musubi_core.offload.swap import Swap
from musubi_core.training import loading
from musubi_core.training.metrics import read_metrics
from musubi_core.training.run import train

BLOCKS = 5
BUCKETS = ((1, 4, 4),) * 5 + ((1, 4, 6),) * 2  # two sizes


class CheckpointedNet(FakeNet):
    """FakeNet with gradient checkpointing, as real networks have it."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        extra = torch.cat([text, t[:, None]], 1)[:, None].expand(-1, tokens.shape[1], -1)
        h = self.inward(torch.cat([tokens, extra], -1).to(self.inward.weight.dtype))
        for block in self.blocks:
            saving = torch.is_grad_enabled()
            h = checkpoint(block, h, use_reentrant=False) if saving else block(h)
        return self.outward(h).transpose(1, 2).reshape(x.shape)


def load(request: LoadRequest) -> CheckpointedNet:
    tensors = load_file(request.path)
    net = CheckpointedNet(tensors["inward.weight"].shape[0], BLOCKS)
    net.load_state_dict(tensors)
    return net.to(request.device, request.dtype)


SPEC = dataclasses.replace(FAKE, load=load)


@pytest.fixture
def place(tmp_path):
    torch.set_num_threads(1)
    torch._dynamo.reset()
    return write_workplace(tmp_path, blocks=BLOCKS, grids=BUCKETS)


@pytest.fixture
def swaps(monkeypatch) -> list[Swap]:
    """Every Swap of the run."""
    found: list[Swap] = []

    def noted(*args: Any) -> Swap:
        found.append(start(*args))
        return found[-1]

    start = loading.start_swap
    monkeypatch.setattr(loading, "start_swap", noted)
    return found


def run(place, *, spec=SPEC, **options) -> tuple[dict[str, Tensor], list]:
    events: list = []
    options = {"gradient_checkpointing": True, "max_train_steps": 4, **options}
    result = train(config_for(place, **options), events.append, spec=spec)
    return load_file(result.lora), events


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 4])
def test_swap_on_equals_swap_off_bit_for_bit(place, swaps, ring, blocks):
    expected, _ = run(place)
    assert not swaps[0].rings
    found, events = run(place, blocks_to_swap=blocks, block_swap_ring_size=ring)
    assert same(found, expected)
    assert swaps[1].copied > (0 if blocks == 1 else blocks)
    assert any(f"{blocks} blocks wait in main memory" in e.text for e in events if isinstance(e, Note))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3, "network_dropout": 0.2},
        {"validation_split": 0.3, "validate_every_n_steps": 1, "num_timestep_buckets": 2},
        {"mixed_precision": "bf16"},
        {"block_swap_h2d_only": True, "use_pinned_memory_for_block_swap": True},
        {"gradient_checkpointing_cpu_offload": True},
        {"compile": True, "compile_backend": "eager"},
    ],
    ids=str,
)
def test_swap_with_everything_else_changes_no_bit(place, swaps, options):
    expected, _ = run(place, **options)
    losses = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    found, events = run(place, blocks_to_swap=4, **options)
    assert same(found, expected)
    assert swaps[-1].copied > 4
    again = read_metrics(place["output_dir"] / "lora.metrics.jsonl")
    for name in ("loss/current", "loss/validation"):
        assert [line.get(name) for line in again] == [line.get(name) for line in losses]
    assert not [e.text for e in events if isinstance(e, Warned) and "torch.compile" in e.text]


def test_input_layers_in_host_memory_change_no_bit(place):
    spec = dataclasses.replace(SPEC, swap=SwapRule(visitors=("inward", "outward")))
    expected, _ = run(place)
    for more in ({}, {"blocks_to_swap": 3}):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run(place, spec=spec, img_in_txt_in_offloading=True, **more)  # gradients pass the last layer
    spec = dataclasses.replace(SPEC, swap=SwapRule(visitors=("inward",)))
    for more in ({}, {"blocks_to_swap": 3}):
        found, events = run(place, spec=spec, img_in_txt_in_offloading=True, **more)
        assert same(found, expected)
        assert any("take in latents and captions" in e.text for e in events if isinstance(e, Note))


def test_an_architecture_without_such_layers_says_so(place):
    with pytest.raises(ConfigError, match="--img_in_txt_in_offloading is not available for fake"):
        run(place, img_in_txt_in_offloading=True)


def test_activations_in_host_memory_change_no_bit(place):
    expected, _ = run(place)
    assert same(run(place, gradient_checkpointing_cpu_offload=True)[0], expected)


def test_a_run_goes_on_with_another_swap(place):
    expected, _ = run(place)
    run(place, max_train_steps=2, blocks_to_swap=4, save_state_on_train_end=True)
    state = str(place["output_dir"] / "lora-state")
    assert same(run(place, blocks_to_swap=2, block_swap_ring_size=1, resume=state)[0], expected)


def test_the_rings_are_given_up_when_a_run_ends_badly(place, swaps):
    def broken(*args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(place, spec=dataclasses.replace(SPEC, predict=broken), blocks_to_swap=3)
    (ring,) = swaps[0].rings
    assert not ring._slots


def test_two_experts_swap_side_by_side(place, swaps):
    dit = place["dit"]
    experts = (Expert(path=dit, name="low", t_max=0.5), Expert(path=dit, name="high", t_min=0.5))
    spec = dataclasses.replace(SPEC, experts=lambda path, options: experts)
    expected, _ = run(place, spec=spec, max_train_steps=12)
    found, _ = run(place, spec=spec, blocks_to_swap=4, max_train_steps=12)
    assert same(found, expected)
    assert [len(one.rings) for one in swaps] == [0, 0, 1, 1]
    assert all(one.copied for one in swaps[2:])

    waiting = tuple(dataclasses.replace(expert, offload=True) for expert in experts)
    with pytest.raises(ConfigError, match="--offload_inactive_dit"):
        run(place, spec=dataclasses.replace(SPEC, experts=lambda *_: waiting), blocks_to_swap=1)


def test_too_many_blocks_name_the_allowed_range(place):
    with pytest.raises(ConfigError, match="use 0 to 4"):
        run(place, blocks_to_swap=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks_to_swap": 2, "gradient_checkpointing": False}, "--gradient_checkpointing"),
        (
            {"gradient_checkpointing_cpu_offload": True, "gradient_checkpointing": False},
            "--gradient_checkpointing",
        ),
        ({"blocks_to_swap": 2, "dynamo_backend": "INDUCTOR"}, "Use --compile"),
        ({"blocks_to_swap": 2, "compile": True, "compile_mode": "reduce-overhead"}, "no-cudagraphs"),
    ],
)
def test_contradictions_are_refused_before_the_model_is_loaded(place, options, message):
    def load(request):
        raise AssertionError("the model was loaded")

    with pytest.raises(ConfigError, match=message):
        run(place, spec=dataclasses.replace(SPEC, load=load), **options)


class Graphs:
    """A compiler that compiles nothing and counts how often it is asked."""

    def __init__(self, name: str) -> None:
        self.count, self.name = 0, name
        torch._dynamo.register_backend(compiler_fn=self, name=name)

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.mark.parametrize("swap", [0, 4])
@pytest.mark.parametrize("dynamic", ["auto", "false"])
def test_graphs_are_bounded_by_the_number_of_buckets(place, swap, dynamic):
    """Two for each size of a batch, however many blocks: the input of the first one has no gradient."""
    sizes = {(2, 16), (1, 16), (2, 24)}  # (samples, tokens): 5 pictures of one size make batches of 2, 2, 1
    counts = []
    for steps in (8, 24):
        torch._dynamo.reset()
        name = f"counting_{dynamic}_{swap}_{steps}"
        graphs = Graphs(name)
        options = {"max_train_steps": steps, "blocks_to_swap": swap}
        expected, _ = run(place, **options)
        found, events = run(place, compile=True, compile_backend=name, compile_dynamic=dynamic, **options)
        assert not [e.text for e in events if isinstance(e, Warned) and "torch.compile" in e.text]
        assert same(found, expected)
        counts.append(graphs.count)
    assert counts[0] == counts[1]
    assert 0 < counts[0] <= 2 * len(sizes)


def warned_of_compiling(events) -> list[str]:
    return [e.text for e in events if isinstance(e, Warned) and "compile" in e.text]


MANY = tuple((1, 4, 4 + 2 * width) for width in range(7))


@pytest.mark.parametrize("more", [{}, {"validation_split": 0.2, "validate_every_n_steps": 5}], ids=str)
def test_more_sizes_than_torch_keeps_versions_for_are_all_compiled(tmp_path, more):
    torch._dynamo.reset()
    before = torch._dynamo.config.cache_size_limit
    place = write_workplace(tmp_path, blocks=BLOCKS, grids=MANY, batch_size=1)
    graphs = Graphs("counting_many" + "_validated" * bool(more))
    assert 2 * len(MANY) > before
    expected, _ = run(place, max_train_steps=14, **more)
    options = {"compile": True, "compile_backend": graphs.name, "compile_dynamic": "false", **more}
    found, events = run(place, max_train_steps=14, **options)
    assert same(found, expected)
    assert not warned_of_compiling(events)
    trained = len(MANY) - bool(more)
    assert 2 * trained <= graphs.count <= 2 * trained + bool(more)
    assert torch._dynamo.config.cache_size_limit == before


@pytest.mark.parametrize("fullgraph", [False, True])
def test_sizes_beyond_the_limit_that_was_asked_for_are_told_in_one_line(tmp_path, fullgraph, caplog):
    torch._dynamo.reset()
    place = write_workplace(tmp_path, blocks=BLOCKS, grids=MANY, batch_size=1)
    expected, _ = run(place, max_train_steps=7)
    options = {"compile": True, "compile_backend": "eager", "compile_dynamic": "false"}
    options |= {"compile_cache_size_limit": 3, "compile_fullgraph": fullgraph}
    found, events = run(place, max_train_steps=7, **options)
    assert same(found, expected)
    said = "torch.compile failed" if fullgraph else "more sizes than the compiler may keep versions for"
    (line,) = warned_of_compiling(events)
    assert said in line
    assert not [record for record in caplog.records if "torch._dynamo hit" in str(record.msg)]


def test_a_swapped_block_compiles_in_one_piece(place):
    options = {"blocks_to_swap": 4, "compile_fullgraph": True}
    found, events = run(place, compile=True, compile_backend="eager", **options)
    assert not [e.text for e in events if isinstance(e, Warned) and "torch.compile" in e.text]
    assert same(found, run(place)[0])


def test_a_compiler_that_fails_is_given_up_while_blocks_are_swapped(place):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.register_backend(compiler_fn=broken, name="broken_while_swapping")
    found, events = run(place, blocks_to_swap=4, compile=True, compile_backend="broken_while_swapping")
    assert sum("torch.compile failed" in e.text for e in events if isinstance(e, Warned)) == 1
    assert same(found, run(place)[0])
