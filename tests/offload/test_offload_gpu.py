"""Block swap and activation offload on a card: the same bits, beside the computation, in less memory."""

from __future__ import annotations

import pytest
import torch
from layered import equal, layered

from musubi_core.device.pinning import host_buffer
from musubi_core.device.streams import CopyStream
from musubi_core.offload.activations import activations_on_host
from musubi_core.offload.copies import DirectCopies, StagedCopies
from musubi_core.offload.swap import swap

pytestmark = pytest.mark.gpu

HIDDEN, BLOCKS = 256, 8


@pytest.fixture
def card() -> torch.device:
    return torch.device("cuda", 0)


def on_card(model, card, *, but=()):
    """Everything on the card, except the blocks with these numbers."""
    for name, module in model.named_children():
        if name != "blocks":
            module.to(card)
    for number, block in enumerate(model.blocks):
        if number not in but:
            block.to(card)
    return model


def numbers(model, card, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 64, HIDDEN, generator=generator).to(card).requires_grad_()
    vec = torch.randn(2, 1, HIDDEN, generator=generator).to(card)
    output = model(x, vec)
    output.square().mean().backward()
    return [output.detach(), x.grad]


@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("pinned", [False, True])
def test_swap_on_equals_swap_off_bit_for_bit_on_a_card(card, ring, pinned):
    plain = on_card(layered(BLOCKS, hidden=HIDDEN), card)
    model = on_card(layered(BLOCKS, hidden=HIDDEN), card, but=range(BLOCKS))
    held = swap([list(model.blocks)], [BLOCKS], ring=ring, device=card, pinned=pinned)
    assert isinstance(held.rings[0]._copies, DirectCopies if pinned else StagedCopies)
    expected = [numbers(plain, card, seed) for seed in range(8)]
    found = [numbers(model, card, seed) for seed in range(8)]  # without waiting for the card in between
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))
    held.release()
    model.to(card)
    assert equal(numbers(model, card, 0), expected[0])


def test_swapped_blocks_take_only_the_ring_of_the_cards_memory(card):
    before = torch.cuda.memory_allocated(card)
    model = on_card(layered(BLOCKS, hidden=HIDDEN), card, but=range(BLOCKS))
    held = swap([list(model.blocks)], [BLOCKS], ring=2, device=card, pinned=True)
    (ring,) = held.rings
    block = sum(weight.nbytes for weight in model.blocks[0].parameters())
    assert torch.cuda.memory_allocated(card) - before < 3.5 * block
    assert ring.device_bytes == pytest.approx(ring.host_bytes * 2 / BLOCKS)
    held.release()


def test_copies_run_beside_the_computation(card):
    """A copy that is queued behind a long computation on another stream ends before it."""
    stream = CopyStream(card)
    source, target = host_buffer(1 << 20, pinned=True), torch.empty(1 << 20, dtype=torch.uint8, device=card)
    torch.cuda.synchronize()
    mark = stream.mark()
    torch.cuda._sleep(1_000_000_000)
    computed = torch.cuda.current_stream().record_event()
    copied = stream.copy(target, source, mark)
    copied.synchronize()
    assert not computed.query()


def test_pinned_memory_is_given_back(card):
    buffer = host_buffer((1 << 20) + 3, pinned=True)
    assert buffer.is_pinned()
    view = buffer[1:]
    del buffer
    assert not view.is_pinned()


def test_activations_in_host_memory_change_no_bit_on_a_card(card):
    plain, model = (on_card(layered(BLOCKS, hidden=HIDDEN), card) for _ in range(2))
    stream = CopyStream(card)

    def offloaded(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 64, HIDDEN, generator=generator).to(card).requires_grad_()
        vec = torch.randn(2, 1, HIDDEN, generator=generator).to(card)
        with activations_on_host(model, stream, smallest=1) as moved:
            output = model(x, vec)
        output.square().mean().backward()
        assert len(moved) >= BLOCKS
        return [output.detach(), x.grad]

    found = [offloaded(seed) for seed in range(8)]
    assert all(equal(one, numbers(plain, card, seed)) for seed, one in enumerate(found))


def test_full_training_with_swap_gives_the_bits_of_training_without_on_a_card(card):
    found = []
    for swapping in (False, True):
        model = layered(BLOCKS, hidden=HIDDEN).requires_grad_(True)
        on_card(model, card, but=range(BLOCKS) if swapping else ())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        held = swap([list(model.blocks)], [BLOCKS if swapping else 0], ring=2, device=card)
        for seed in range(4):
            numbers(model, card, seed)
            if seed % 2:  # of two passes added up
                held.update(optimizer)
                optimizer.zero_grad()
        found.append([weight.detach().cpu() for weight in model.parameters()])
        if swapping:
            assert all(block.up.weight.device.type == "cpu" for block in model.blocks)
            assert all(
                value.device.type == "cpu" or not value.ndim
                for block in model.blocks
                for value in optimizer.state[block.up.weight].values()
            )
    assert equal(*found)
