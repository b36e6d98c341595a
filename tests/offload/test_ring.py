"""Block swap changes where weights lie, and nothing else. On the CPU, with buffers as if on a card."""

from __future__ import annotations

import itertools

import pytest
import torch
from layered import equal, inputs, layered, numbers
from torch import nn

from musubi_core.device.streams import CopyStream
from musubi_core.offload.copies import StagedCopies
from musubi_core.offload.ring import Ring
from musubi_core.offload.swap import swap

CPU = torch.device("cpu")


def streamed(model, *, slots: int = 2, places=None) -> Ring:
    blocks = list(model.blocks)
    return Ring(blocks if places is None else [blocks[place] for place in places], slots=slots, device=CPU)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_swap_on_equals_swap_off_bit_for_bit(slots, count):
    plain, model = layered(), layered()
    held = swap([list(model.blocks)], [count], ring=slots, device=CPU)
    for seed in range(3):
        assert equal(numbers(model, seed), numbers(plain, seed))
    assert held.copied > 0


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_every_order_of_training_and_previews_gives_the_same_numbers(slots):
    plain, model = layered(), layered()
    streamed(model, slots=slots)
    for order in itertools.product("tp", repeat=4):
        for number, kind in enumerate(order):
            if kind == "t":
                assert equal(numbers(model, number), numbers(plain, number)), order
            else:
                with torch.no_grad():
                    assert torch.equal(model(*inputs(number)), plain(*inputs(number))), order


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_training_step_copies_only_what_is_not_in_the_ring_at_the_turn(slots):
    """2 (S - B) copies per step: the last blocks of the forward pass are the first of the backward pass."""
    model = layered(5)
    ring = streamed(model, slots=slots)
    numbers(model)
    before = ring.copied
    for step in range(1, 4):
        numbers(model)
        assert ring.copied - before == step * 2 * (5 - slots)


def test_a_ring_as_large_as_the_list_copies_each_block_once():
    model = layered(3)
    ring = streamed(model, slots=9)
    for _ in range(3):
        numbers(model)
    assert ring.copied == 3
    assert ring.device_bytes == ring.host_bytes


@pytest.fixture
def log() -> list[str]:
    """What happens: "c2" when the copy of block 2 begins, "r2" when block 2 runs."""
    return []


def logged(log: list[str], *, slots: int) -> nn.Module:
    """A network of 4 streamed blocks that writes the log."""
    model = layered(4)
    ring = streamed(model, slots=slots)
    start = ring._copies.start
    masters = [block.master for block in ring.streamed]

    def noted(slot, target, source, after):
        log.append(f"c{next(rank for rank, master in enumerate(masters) if master is source)}")
        return start(slot, target, source, after)

    ring._copies.start = noted
    for rank, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, rank=rank: log.append(f"r{rank}"))
    return model


def test_in_training_the_next_block_is_on_its_way_before_one_runs_in_either_direction(log):
    model = logged(log, slots=2)
    numbers(model)
    assert " ".join(log) == "c0 c1 r0 c2 r1 c3 r2 r3" + " r3 c1 r2 c0 r1 r0"
    log.clear()
    numbers(model)
    assert " ".join(log) == "r0 c2 r1 c3 r2 r3" + " r3 c1 r2 c0 r1 r0"


def test_with_three_buffers_two_blocks_are_on_their_way(log):
    numbers(logged(log, slots=3))
    assert " ".join(log) == "c0 c1 c2 r0 c3 r1 r2 r3" + " r3 c0 r2 r1 r0"


def test_at_the_end_of_a_preview_the_first_block_is_brought_back(log):
    model = logged(log, slots=2)
    with torch.no_grad():
        model(*inputs())
        assert " ".join(log) == "c0 c1 r0 c2 r1 c3 r2 c0 r3"
        log.clear()
        model(*inputs())
    assert " ".join(log) == "c1 r0 c2 r1 c3 r2 c0 r3"


def test_gradients_that_accumulate_are_the_same():
    plain, model = layered(), layered()
    streamed(model)
    found = []
    for network in (plain, model):
        x, vec = inputs()
        for scale in (1.0, 0.5, 2.0):
            (network(x, vec).square().mean() * scale).backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_two_forwards_before_their_backwards_are_right_too():
    plain, model = layered(), layered()
    streamed(model, slots=2)
    found = []
    for network in (plain, model):
        (one, vec), (other, _) = inputs(1), inputs(2)
        first, second = network(one, vec).sum(), network(other, vec).square().sum()
        first.backward()
        second.backward()
        found.append([one.grad, other.grad])
    assert equal(*found)


@pytest.mark.parametrize("fails_at", [0, 2, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_after_an_exception_anywhere_the_next_step_is_right(fails_at, backward):
    plain, model = layered(), layered()
    streamed(model, slots=2)
    calls = itertools.count()
    target = 9 - fails_at if backward else fails_at

    def fail(*_):
        if next(calls) == target:
            raise KeyboardInterrupt

    hooks = [block.register_forward_pre_hook(fail) for block in model.blocks]
    with pytest.raises(KeyboardInterrupt):
        numbers(model)
    for hook in hooks:
        hook.remove()
    assert equal(numbers(model), numbers(plain))


@pytest.mark.parametrize("fails_at", range(8))
def test_after_a_copy_that_failed_the_next_step_is_right(monkeypatch, fails_at):
    plain, model = layered(), layered()
    ring = streamed(model, slots=2)
    start, calls = ring._copies.start, itertools.count()

    def fail_once(*args):
        if next(calls) == fails_at:
            raise MemoryError
        return start(*args)

    monkeypatch.setattr(ring._copies, "start", fail_once)
    with pytest.raises(MemoryError):
        numbers(model)
    assert equal(numbers(model), numbers(plain))


def test_a_preview_in_inference_mode_leaves_weights_that_can_be_trained_with():
    plain, model = layered(), layered()
    streamed(model, slots=2)
    with torch.inference_mode():
        assert torch.equal(model(*inputs()), plain(*inputs()))
    assert equal(numbers(model), numbers(plain))


def test_two_networks_swap_side_by_side():
    plain, model, other = layered(), layered(), layered()
    streamed(model, slots=2)
    streamed(other, slots=1, places=(1, 3))
    for seed in range(2):
        expected = numbers(plain, seed)
        assert equal(numbers(model, seed), expected)
        assert equal(numbers(other, seed), expected)


def test_blocks_of_different_sizes_share_a_ring():
    def net():
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(8, 40), nn.Linear(40, 8), nn.Linear(8, 8))
        return wide.requires_grad_(False)

    plain, model = net(), net()
    Ring(list(model), slots=2, device=CPU)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_weights_of_every_type_arrive_bit_for_bit(dtype):
    model = layered()
    for block in model.blocks:
        block.up.weight = nn.Parameter(block.up.weight.to(dtype), requires_grad=False)
    before = [block.up.weight.view(torch.uint8).clone() for block in model.blocks]
    seen = []
    streamed(model)
    for block in model.blocks:
        block.register_forward_hook(
            lambda module, *_: seen.append(module.up.weight.view(torch.uint8).clone())
        )
        block.forward = lambda x, vec: x
    with torch.no_grad():
        model(*inputs())
    assert equal(seen, before)


def test_parameters_stay_the_same_objects_with_the_same_names_and_values():
    model = layered()
    objects = dict(model.named_parameters())
    values = {name: value.clone() for name, value in model.state_dict().items()}
    ring = streamed(model)
    numbers(model)
    assert all(parameter is objects[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    ring.release()
    ring.release()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert equal(numbers(model), numbers(layered()))
    assert ring.copied == 2 * 5 - 2, "no hook is left"


def test_weights_do_not_lie_in_the_device_memory_twice():
    model = layered(5)
    ring = streamed(model, slots=2)
    numbers(model)
    buffers = {slot.untyped_storage().data_ptr() for slot in ring._slots}
    inside = [
        number
        for number, block in enumerate(model.blocks)
        if block.up.weight.untyped_storage().data_ptr() in buffers
    ]
    assert len(inside) == 2
    assert ring.device_bytes == 2 / 5 * ring.host_bytes


def test_without_checkpointing_the_backward_pass_refuses_instead_of_being_wrong():
    model = layered(checkpointing=False)
    streamed(model, slots=2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        numbers(model)


def test_trained_weights_are_refused():
    model = layered().requires_grad_(True)
    with pytest.raises(ValueError, match="trained"):
        streamed(model)


def test_copies_through_a_thread_give_the_same_numbers():
    """As on a card without pinned memory; here the card's part is done at once."""
    plain, model = layered(), layered()
    ring = streamed(model, slots=2)
    stream = CopyStream(CPU)
    size = max(len(block.master) for block in ring.streamed)
    ring._copies = StagedCopies(stream, size=size, slots=2)
    for seed in range(3):
        assert equal(numbers(model, seed), numbers(plain, seed))
    ring.release()
    assert equal(numbers(model), numbers(plain))
