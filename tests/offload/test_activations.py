"""Activations that wait in host memory change no bit, and do not stay on the device."""

from __future__ import annotations

import gc

import pytest
import torch
from layered import Block, equal, inputs, layered, numbers

from musubi_core.device.streams import CopyStream
from musubi_core.offload.activations import Activation, activations_on_host
from musubi_core.offload.ring import Ring

CPU = torch.device("cpu")


def offloaded(model, seed: int = 1) -> tuple[list[torch.Tensor], list[int]]:
    x, vec = inputs(seed)
    with activations_on_host(model, CopyStream(CPU), smallest=1) as moved:
        output = model(x, vec)
    output.square().mean().backward()
    return [output.detach(), x.grad], moved


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offload_on_equals_offload_off_bit_for_bit(checkpointing):
    plain, model = (layered(checkpointing=checkpointing) for _ in range(2))
    for seed in range(3):
        found, moved = offloaded(model, seed)
        assert equal(found, numbers(plain, seed))
        assert moved


def test_with_swap_too_no_bit_changes():
    plain, model = layered(), layered()
    Ring(list(model.blocks), slots=2, device=CPU)
    assert equal(offloaded(model)[0], numbers(plain))


def test_with_checkpointing_each_input_of_a_block_is_moved_once():
    """x of 5 blocks, vec once for all of them, and what the loss needs is outside."""
    x, vec = inputs()
    _, moved = offloaded(layered(5))
    assert sorted(moved) == sorted([vec.nbytes] + 5 * [x.nbytes])


def test_an_activation_leaves_the_device_when_the_next_block_has_it():
    """Between forward and backward, only the inputs and the output are alive there."""
    gc.collect()
    before = count_tensors((2, 3, 8))
    model = layered(5)
    x, vec = inputs()
    with activations_on_host(model, CopyStream(CPU), smallest=1):
        output = model(x, vec)
        in_host_memory = sum(one.shape == x.shape for one in activations())
        assert in_host_memory == 5
        assert count_tensors((2, 3, 8)) - before - in_host_memory == 2
    output.sum().backward()


def test_nothing_of_a_step_is_left_behind():
    gc.collect()
    for _ in range(2):
        offloaded(layered())
    gc.collect()
    assert not activations()


def test_small_tensors_and_weights_are_left_alone():
    model = layered(checkpointing=False)
    x, vec = inputs()
    with activations_on_host(model, CopyStream(CPU)) as moved:
        model(x, vec)
    assert not moved
    with activations_on_host(model, CopyStream(CPU), smallest=Block(8).up.weight.nbytes) as moved:
        model(x, vec)
    assert not moved


def test_a_tensor_changed_in_between_is_not_taken_for_the_earlier_one():
    x = torch.ones(3, requires_grad=True)
    with activations_on_host(torch.nn.Identity(), CopyStream(CPU), smallest=1):
        factor = torch.full((3,), 2.0)
        one = x * factor
        factor.mul_(3)
        two = x * factor
    (one + two).sum().backward()
    assert x.grad.tolist() == [8.0] * 3


def count_tensors(shape: tuple[int, ...]) -> int:
    return sum(type(one) is torch.Tensor and tuple(one.shape) == shape for one in gc.get_objects())


def activations() -> list[torch.Tensor]:
    """What waits in host memory now."""
    return [one._host for one in gc.get_objects() if type(one) is Activation]
