"""Swapped blocks whose weights are trained: whole training loops give the same bits as without swap."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from layered import Layered, inputs, layered
from torch import Tensor, nn

from musubi_core.offload.exchange import Exchange
from musubi_core.offload.swap import Swap, swap

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2),
    "SGD": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9, weight_decay=1e-3),
    "Adagrad": lambda weights: torch.optim.Adagrad(weights, lr=1e-2),
}


def trained(blocks: int = 5) -> Layered:
    return layered(blocks).requires_grad_(True)


def swapped(model: Layered, count: int, *, slots: int = 2) -> Swap:
    return swap([list(model.blocks)], [count], ring=slots, device=CPU)


class Loop:
    """Full training as anyone would write it: accumulate, clip, update, look at the loss now and then."""

    def __init__(self, model: Layered, optimizer: str, held: Swap | None) -> None:
        self.model, self.held = model, held
        self.optimizer = OPTIMIZERS[optimizer](list(model.parameters()))
        self.seen: list[Tensor] = []

    def backward(self, seed: int) -> None:
        self.model(*inputs(seed)).square().mean().backward()

    def look(self, seed: int) -> None:
        with torch.no_grad():
            self.seen.append(self.model(*inputs(seed)).clone())

    def clip(self) -> None:
        self.seen.append(nn.utils.clip_grad_norm_(self.model.parameters(), 0.05))

    def update(self) -> None:
        if self.held is None:
            self.optimizer.step()
        else:
            self.held.update(self.optimizer)

    def clear(self, *, to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=to_none)

    def run(self) -> list[Tensor]:
        for step in range(4):
            for part in range(1 + step % 3):
                self.backward(10 * step + part)
            if step == 1:
                self.look(step)  # between backward and update
            self.clip()
            self.update()
            self.look(step)
            self.clear(to_none=step % 2 == 0)
        return [*self.seen, *(weight.detach().clone() for weight in self.model.parameters())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("count", "slots"), [(1, 1), (3, 1), (4, 2), (5, 2), (5, 3), (5, 9)])
@pytest.mark.parametrize("on_device", [True, False], ids=["update on device", "plain step"])
def test_full_training_with_swap_gives_the_bits_of_training_without(optimizer, count, slots, on_device):
    expected = Loop(trained(), optimizer, None).run()
    model = trained()
    held = swapped(model, count, slots=slots)
    assert len(held.exchanges) == 1
    assert equal(Loop(model, optimizer, held if on_device else None).run(), expected)
    assert held.copied > count


def test_every_order_of_passes_and_updates_gives_the_same_bits():
    """b: backward, l: a look without gradient, u: update on the device, s: a plain step, z: zero."""
    for order in itertools.product("blusz", repeat=3):
        found = []
        for with_swap in (False, True):
            model = trained(3)
            held = swapped(model, 3) if with_swap else None
            loop = Loop(model, "SGD", held)
            work = {
                "b": loop.backward,
                "l": loop.look,
                "u": lambda _, loop=loop: loop.update(),
                "s": lambda _, loop=loop: loop.optimizer.step(),
                "z": lambda _, loop=loop: loop.clear(to_none=True),
            }
            for number, what in enumerate(("b", *order, "l")):
                work[what](number)
            found.append([*loop.seen, *(one.detach() for one in model.parameters())])
        assert equal(*found), order


def test_between_passes_weights_and_gradients_are_in_host_memory():
    model = trained()
    held = swapped(model, 4)
    exchange = held.exchanges[0]
    hosts = [one.master for one in exchange.ring.streamed] + exchange._homes

    def at_home() -> bool:
        places = [(buffer.data_ptr(), buffer.data_ptr() + len(buffer)) for buffer in hosts]
        every = [weight for one in exchange.ring.streamed for weight, _ in one.trained(one.master)]
        every += [weight.grad for weight in every if weight.grad is not None]
        return all(any(low <= one.data_ptr() < high for low, high in places) for one in every)

    loop = Loop(model, "AdamW", held)
    for what in (
        lambda: loop.backward(1),
        lambda: loop.look(2),
        loop.clip,
        loop.update,
        lambda: loop.look(3),
    ):
        what()
        assert at_home()
    slots = exchange.ring._slots
    assert len(slots) == 2, "the device holds two blocks"
    assert all(weight.grad is not None for weight in model.parameters())


def test_frozen_and_trained_weights_may_stand_side_by_side():
    found = []
    for with_swap in (False, True):
        model = trained()
        for block in model.blocks:
            block.down.requires_grad_(False)
            block.norm.requires_grad_(False)
        held = swapped(model, 5) if with_swap else None
        found.append(Loop(model, "AdamW", held).run())
    assert equal(*found)


def test_a_block_that_gets_no_gradient_is_left_alone():
    found = []
    for with_swap in (False, True):
        model = trained()
        held = swapped(model, 5) if with_swap else None
        loop = Loop(model, "SGD", held)
        loop.backward(0)
        for block in model.blocks[:2]:
            block.requires_grad_(False)
        loop.clear(to_none=True)
        loop.backward(1)
        loop.update()
        found.append([one.detach() for one in model.parameters()])
    assert equal(*found)


def test_one_backward_pass_through_two_forwards_adds_up():
    found = []
    for with_swap in (False, True):
        model = trained()
        if with_swap:
            swapped(model, 5)
        first, second = model(*inputs(1)), model(*inputs(2))
        (first.sum() + second.square().sum()).backward()
        found.append([weight.grad for weight in model.parameters()])
    assert equal(*found)


def test_after_an_error_in_the_backward_pass_the_next_step_is_right():
    plain, model = trained(), trained()
    held = swapped(model, 5)

    def broken(gradient: Tensor) -> None:
        raise ZeroDivisionError

    x, vec = inputs()
    hidden = model.inward(x)
    hidden.register_hook(broken)
    for block in model.blocks:
        hidden = torch.utils.checkpoint.checkpoint(block, hidden, vec, use_reentrant=False)
    with pytest.raises(ZeroDivisionError):
        hidden.sum().backward()
    for one, how in ((plain, None), (model, held)):
        loop = Loop(one, "AdamW", how)
        loop.clear(to_none=True)
        loop.backward(3)
        loop.update()
    assert equal(*([one.detach() for one in network.parameters()] for network in (plain, model)))


def test_release_leaves_an_ordinary_network_with_what_was_learned():
    plain, model = trained(), trained()
    held = swapped(model, 5)
    expected, found = Loop(plain, "SGD", None), Loop(model, "SGD", held)
    for loop in (expected, found):
        loop.backward(0)
        loop.update()
    held.release()
    held.release()
    found.held = None
    for loop in (expected, found):
        loop.clear(to_none=True)
        loop.backward(1)
        loop.optimizer.step()
    assert equal(*([one.detach() for one in network.parameters()] for network in (plain, model)))


def test_without_checkpointing_the_backward_pass_refuses_instead_of_being_wrong():
    model = layered(checkpointing=False).requires_grad_(True)
    swapped(model, 5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(*inputs()).sum().backward()


def test_frozen_blocks_need_no_exchange():
    model = layered()
    assert not swapped(model, 5).exchanges
    assert isinstance(swapped(trained(), 5).exchanges[0], Exchange)
