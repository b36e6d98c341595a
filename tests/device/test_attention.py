"""Every attention library, with and without split and padding, against a softmax in float64.

The libraries need a card. Here, stand-ins with their signatures compute with sdpa, so that what we hand them
and what we make of their answer is tested; the gpu-marked tests use the real ones where they are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from musubi_core.device.attention import ATTENTIONS, attend, check_attention
from musubi_core.errors import ConfigError, MissingLibraryError

LENGTHS: list[list[int] | None] = [None, [7, 7, 7], [5, 5, 5], [7, 1, 4], [3, 6, 2]]


def inputs(
    batch: int = 3, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v: (B, 7, 2, 8)."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 7, 2, 8, generator=generator).to(device, dtype) for _ in range(3))


def by_the_book(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in float64, one sample and head at a time."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for i in range(len(q)):
        n = q.shape[1] if lengths is None else lengths[i]
        for head in range(q.shape[2]):
            one, two, three = (x[i, :n, head].double().cpu() for x in (q, k, v))
            out[i, :n, head] = torch.softmax(one @ two.T / q.shape[3] ** 0.5, dim=-1) @ three
    return out


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, L, n, d) throughout, as flash attention has it."""
    assert q.ndim == k.ndim == v.ndim == 4
    parts = [x.transpose(1, 2) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)


def varlen(q, k, v, borders_q, borders_k, longest_q, longest_k) -> Tensor:
    """(T, n, d) throughout."""
    assert borders_q.dtype == torch.int32 and torch.equal(borders_q, borders_k)
    assert q.ndim == 3 and borders_q[-1] == len(q) and longest_q == longest_k == int(borders_q.diff().max())
    lengths = borders_q.diff().tolist()
    rows = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([dense(*(x[None] for x in row))[0] for row in rows])


class Borders:
    """xformers' BlockDiagonalMask."""

    def __init__(self, lengths: list[int]) -> None:
        self.borders = torch.tensor([0, *lengths]).cumsum(0).int()
        self.longest = max(lengths)

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> Borders:
        assert isinstance(lengths, list)
        return cls(lengths)


def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Borders | None = None) -> Tensor:
    if attn_bias is None:
        return dense(q, k, v)
    assert len(q) == 1
    borders, longest = attn_bias.borders, attn_bias.longest
    return varlen(q[0], k[0], v[0], borders, borders, longest, longest)[None]


def sageattn(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str, is_causal: bool) -> Tensor:
    assert tensor_layout == "NHD" and not is_causal
    return dense(q, k, v)


def module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=Borders))
    ops = module("xformers.ops", memory_efficient_attention=memory_efficient_attention, fmha=fmha)
    flash3 = {
        "flash_attn_func": lambda *args: (dense(*args), None),  # some versions return the sums as well
        "flash_attn_varlen_func": lambda *args: (varlen(*args), None),
    }
    for made in (
        module("flash_attn", flash_attn_func=dense, flash_attn_varlen_func=varlen),
        module("flash_attn_interface", **flash3),
        module("xformers", ops=ops),
        ops,
        module("sageattention", sageattn=sageattn),
    ):
        monkeypatch.setitem(sys.modules, made.__name__, made)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_kind_equals_the_softmax_and_padding_is_zero(kind: str, split: bool, lengths: list[int] | None):
    sixteen_bits = kind in ("flash_attn", "flash3", "sage_attn")
    q, k, v = inputs(dtype=torch.bfloat16 if sixteen_bits else torch.float32)
    out = attend(q, k, v, lengths=lengths, kind=kind, split=split)
    assert out.shape == q.shape and out.dtype == q.dtype
    tolerance = 2e-2 if sixteen_bits else 1e-6
    assert (out.double() - by_the_book(q, k, v, lengths)).abs().max() < tolerance
    for row, length in zip(out, lengths or [], strict=bool(lengths)):
        assert not row[length:].any()


@pytest.mark.parametrize("split", [False, True])
def test_padding_has_no_influence_and_gets_no_gradient(split: bool):
    lengths = [4, 7, 2]
    q, k, v = (x.requires_grad_() for x in inputs())
    with torch.no_grad():
        dirty = [x.clone() for x in (q, k, v)]
        for x in dirty:
            for i, length in enumerate(lengths):
                x[i, length:] = 1e6
    clean = attend(q, k, v, lengths=lengths, split=split)
    assert torch.equal(clean, attend(*dirty, lengths=lengths, split=split))
    clean.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and x.grad.isfinite().all()
        for i, length in enumerate(lengths):
            assert not x.grad[i, length:].any() and x.grad[i, :length].any()


def test_split_gives_the_gradient_of_the_whole_batch():
    gradients = []
    for split in (False, True):
        q, k, v = (x.requires_grad_() for x in inputs())
        attend(q, k, v, lengths=[4, 7, 2], split=split).square().sum().backward()
        gradients.append(torch.stack([q.grad, k.grad, v.grad]))
    assert torch.allclose(*gradients, atol=1e-6)


def test_lengths_may_be_a_tensor_and_one_sample_may_be_padded():
    q, k, v = inputs()
    tensor = attend(q, k, v, lengths=torch.tensor([3, 7, 5]))
    assert torch.equal(tensor, attend(q, k, v, lengths=(3, 7, 5)))
    one = attend(q[:1], k[:1], v[:1], lengths=[3])
    assert torch.allclose(one, tensor[:1], atol=1e-6)


def test_without_lengths_keys_may_be_fewer_than_queries():
    q, k, v = inputs()
    for split in (False, True):
        out = attend(q, k[:, :4], v[:, :4], split=split)
        assert torch.allclose(out, dense(q, k[:, :4], v[:, :4]), atol=1e-6)


def test_equal_lengths_take_the_path_without_a_mask(monkeypatch):
    """A mask would cost the fast kernels."""
    from musubi_core.device import attention

    masks = []
    real = attention.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None):
        masks.append(attn_mask)
        return real(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    q, k, v = inputs()
    attend(q, k, v)
    attend(q, k, v, lengths=[5, 5, 5])
    attend(q, k, v, lengths=[5, 4, 3], split=True)
    attend(q[:1], k[:1], v[:1], lengths=[5])
    assert masks == [None] * 6
    attend(q, k, v, lengths=[5, 4, 3])
    assert masks[-1].shape == (3, 1, 1, 5)


@pytest.mark.parametrize("lengths", [[1, 2], [0, 7, 7], [8, 7, 7], [-1, 7, 7]])
def test_lengths_that_do_not_fit_are_a_slip_of_the_caller(lengths: list[int]):
    with pytest.raises(ValueError, match="do not fit"):
        attend(*inputs(), lengths=lengths)


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [
        ("flash_attn", ["flash_attn"], "--flash_attn needs flash-attn"),
        ("flash3", ["flash_attn_interface"], "--flash3 needs flash-attn-3"),
        ("xformers", ["xformers", "xformers.ops"], "--xformers needs xformers"),
        ("sage_attn", ["sageattention"], "--sage_attn needs sageattention"),
    ],
)
def test_an_absent_library_is_named_with_its_package_and_option(
    monkeypatch, kind: str, names: list[str], words: str
):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=words):
        check_attention(kind, training=False)
    with pytest.raises(MissingLibraryError, match=words):
        attend(*inputs(dtype=torch.bfloat16), kind=kind)


def test_a_library_that_was_built_for_another_system_counts_as_absent(monkeypatch):
    from musubi_core.device import libraries

    def broken(name: str) -> ModuleType:
        raise OSError("libcudart.so.11: cannot open shared object file")

    monkeypatch.setattr(libraries, "import_module", broken)
    with pytest.raises(MissingLibraryError, match="libcudart"):
        check_attention("flash_attn", training=False)


@pytest.mark.usefixtures("stand_ins")
def test_choices_that_cannot_work_are_refused_up_front():
    for kind in ATTENTIONS:
        if kind != "sage_attn":
            check_attention(kind, training=True)
        check_attention(kind, training=False, device=torch.device("cuda"))
    check_attention("sdpa", training=True, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="no backward pass"):
        check_attention("sage_attn", training=True)
    with pytest.raises(ConfigError, match="graphics card"):
        check_attention("flash_attn", training=True, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="'flash' is unknown; choose one of sdpa"):
        check_attention("flash", training=True)
    with pytest.raises(ConfigError, match="'flash' is unknown"):
        attend(*inputs(), kind="flash")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", ["flash_attn", "flash3", "sage_attn"])
def test_a_kind_that_knows_16_bits_only_says_so(kind: str):
    with pytest.raises(ConfigError, match="16 bits only, and the network runs in float32"):
        attend(*inputs(), kind=kind)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_on_a_card_every_installed_library_equals_the_softmax(kind: str, lengths: list[int] | None):
    try:
        check_attention(kind, training=False)
    except MissingLibraryError as error:
        pytest.skip(str(error))
    q, k, v = inputs(dtype=torch.bfloat16, device="cuda")
    out = attend(q, k, v, lengths=lengths, kind=kind)
    assert (out.double().cpu() - by_the_book(q, k, v, lengths)).abs().max() < 5e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_unequal_lengths_make_nobody_wait():
    q, k, v = inputs(device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(q, k, v, lengths=[7, 3, 5])
        attend(q, k, v, lengths=[7, 3, 5], split=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
