"""Joining q, k and v and taking them apart: exact against dense matrices, with ranks as small as can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musubi_core.lora_tools.adapter import Adapter, change_of, swap_halves
from musubi_core.lora_tools.fused import join, split

SIZES = (8, 8, 8, 16)
COLUMNS = 8


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(rows, rank, alpha, seed=0, dtype=torch.float32):
    tensors = {
        "lora_down.weight": noise(rank, COLUMNS, seed=seed).to(dtype),
        "lora_up.weight": noise(rows, rank, seed=seed + 1).to(dtype),
    }
    return Adapter(kind="lora", tensors=tensors, rank=rank, alpha=alpha)


def loha(rows, rank, alpha, seed=0):
    tensors = {f"hada_w{n}_a": noise(rows, rank, seed=seed + n) for n in (1, 2)}
    tensors |= {f"hada_w{n}_b": noise(rank, COLUMNS, seed=seed + 2 + n) for n in (1, 2)}
    return Adapter(kind="loha", tensors=tensors, rank=rank, alpha=alpha)


def lokr(rows, seed=0):
    tensors = {"lokr_w1": noise(rows // 4, 2, seed=seed), "lokr_w2": noise(4, COLUMNS // 2, seed=seed + 1)}
    return Adapter(kind="lokr", tensors=tensors, rank=0, alpha=3.0)


def dense(adapter):
    """(o, i) in float64, by the formulas of the reference (lora-and-fp8 2.1)."""
    t = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    if adapter.kind == "lora":
        return adapter.alpha / adapter.rank * t["lora_up.weight"] @ t["lora_down.weight"]
    if adapter.kind == "loha":
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return adapter.alpha / adapter.rank * product
    return torch.kron(t["lokr_w1"], t["lokr_w2"]) if adapter.kind == "lokr" else t["diff"]


def stacked(parts):
    return torch.cat(
        [
            torch.zeros(size, COLUMNS, dtype=torch.float64) if part is None else dense(part)
            for part, size in zip(parts, SIZES, strict=True)
        ]
    )


def assert_close(found, expected):
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


MAKE = {"lora": lora, "loha": loha}


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(MAKE)),
    shapes=st.lists(
        st.none() | st.tuples(st.integers(1, 5), st.sampled_from([0.5, 1.0, 3.0, 4.7])),
        min_size=4,
        max_size=4,
    ).filter(any),
)
def test_joined_parts_of_any_ranks_and_alphas_change_the_same(kind, shapes):
    parts = [
        None if shape is None else MAKE[kind](size, *shape, seed=10 * number)
        for number, (size, shape) in enumerate(zip(SIZES, shapes, strict=True))
    ]
    joined = join(parts, SIZES)
    assert_close(dense(joined), stacked(parts))
    assert_close(stacked(split(joined, SIZES)), stacked(parts))
    assert joined.rank == sum(part.rank for part in parts if part is not None)


@pytest.mark.parametrize("kind", sorted(MAKE))
@pytest.mark.parametrize("absent", [(), (0,), (3,), (1, 2)])
def test_parts_of_one_scale_come_back_bit_by_bit(kind, absent):
    parts = [
        None if n in absent else MAKE[kind](size, n + 1, 0.5 * (n + 1), seed=10 * n)
        for n, size in enumerate(SIZES)
    ]
    for old, new in zip(parts, split(join(parts, SIZES), SIZES), strict=True):
        assert (old is None) == (new is None)
        if old is not None:
            assert (new.rank, new.alpha) == (old.rank, old.alpha)
            assert all(torch.equal(new.tensors[name], tensor) for name, tensor in old.tensors.items())


@pytest.mark.parametrize("make", [lambda: lora(40, 5, 2.0), lambda: loha(40, 5, 2.0), lambda: lokr(40)])
def test_a_dense_fused_change_is_taken_apart_without_growing_and_joined_to_the_same(make):
    whole = make()
    parts = split(whole, SIZES)
    assert_close(stacked(parts), dense(whole))
    assert {part.rank for part in parts} == {whole.rank}
    again = join(parts, SIZES)
    assert again.rank == whole.rank and again.alpha == whole.alpha
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_a_matrix_of_zeros_comes_back_too():
    """A LoRA that was never trained, whose rank could also be four ranks side by side."""
    whole = lora(40, 8, 2.0)
    whole.tensors["lora_up.weight"].zero_()
    again = join(split(whole, SIZES), SIZES)
    assert again.rank == 8 and again.alpha == 2.0
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_a_dead_rank_in_a_part_stays_with_its_part():
    parts = [lora(size, 3, 3.0, seed=n) for n, size in enumerate(SIZES)]
    parts[1].tensors["lora_up.weight"][:, 0] = 0
    parts[2].tensors["lora_up.weight"].zero_()
    for old, new in zip(parts, split(join(parts, SIZES), SIZES), strict=True):
        assert all(torch.equal(new.tensors[name], tensor) for name, tensor in old.tensors.items())


def test_bfloat16_stays_where_scales_agree_and_widens_where_they_do_not():
    same = [lora(size, 2, 1.0, seed=n, dtype=torch.bfloat16) for n, size in enumerate(SIZES)]
    assert join(same, SIZES).tensors["lora_up.weight"].dtype == torch.bfloat16
    halved = [*same[:3], lora(SIZES[3], 2, 0.5, seed=3, dtype=torch.bfloat16)]
    assert join(halved, SIZES).tensors["lora_up.weight"].dtype == torch.bfloat16  # a power of two is exact
    other = [*same[:3], lora(SIZES[3], 2, 0.7, seed=3, dtype=torch.bfloat16)]
    joined = join(other, SIZES)
    assert joined.tensors["lora_up.weight"].dtype == torch.float32
    assert_close(dense(joined), stacked(other))


def test_halves_are_swapped_and_swapped_back():
    for whole in (lora(16, 3, 1.0), loha(16, 3, 1.0), lokr(16)):
        swapped = swap_halves(whole)
        assert torch.equal(dense(swapped), torch.cat(dense(whole).chunk(2)[::-1]))
        again = swap_halves(swapped)
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())


@pytest.mark.parametrize("make", [lambda: lora(40, 5, 2.0), lambda: loha(40, 5, 2.0), lambda: lokr(40)])
def test_what_a_change_does_to_a_vector_is_its_matrix_times_the_vector(make):
    whole, x = make(), noise(COLUMNS, seed=9).double()
    torch.testing.assert_close(change_of(whole, x), dense(whole) @ x)


def with_part(adapter, **tensors):
    return Adapter(
        kind=adapter.kind, tensors={**adapter.tensors, **tensors}, rank=adapter.rank, alpha=adapter.alpha
    )


def four(make):
    return [make(size, seed=n) for n, size in enumerate(SIZES)]


LORAS = four(lambda size, seed: lora(size, 2, 1.0, seed=seed))
REFUSED = {
    "LoKr of their own": (four(lokr), "are no single lokr"),
    "LoRA and LoHa": ([*LORAS[:3], loha(16, 2, 1.0)], "different kinds: loha and lora"),
    "DoRA on some": ([with_part(LORAS[0], dora_scale=torch.ones(8, 1)), *LORAS[1:]], "only some"),
    "DoRA by columns": ([with_part(one, dora_scale=torch.ones(1, 8)) for one in LORAS], "by columns"),
    "another size": ([lora(10, 2, 1.0), *LORAS[1:]], "10 rows where 8 were expected"),
    "Tucker": ([with_part(one, **{"lora_mid.weight": torch.ones(2, 2)}) for one in LORAS], "Tucker"),
    "OFT": (
        [Adapter(kind="oft", tensors={"oft_blocks": torch.ones(1, 2, 2)}, rank=0, alpha=0.0)] * 4,
        "kind oft cannot be taken apart",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_single_change_is_refused(case):
    parts, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        join(parts, SIZES)


def test_a_lokr_whose_blocks_cross_a_border_is_refused():
    with pytest.raises(ValueError, match="blocks of 4 rows cannot be cut at rows 0 and 6"):
        split(lokr(24), (6, 6, 12))
