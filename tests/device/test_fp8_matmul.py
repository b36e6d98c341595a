"""Multiplication in fp8 gives what the ordinary way gives, but for the rounding of the activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musubi_core.device.fp8_matmul import FP8, fits_fp8_matmul, fp8_matmul, why_no_fp8_matmul
from musubi_core.quantization.fp8 import dequantise, quantise
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.scheme import Scheme

BY_ROW, BY_TENSOR = Scheme(granularity="channel"), Scheme(granularity="tensor")


def simulated(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """torch._scaled_mm as documented: fp8 operands, scales of the rows of a and the columns of b."""
    assert a.dtype == FP8 and b.dtype in (FP8, torch.float8_e5m2)
    assert a.stride(1) == 1 and b.stride(0) == 1, "a by rows, b by columns"
    rows, columns = a.shape[0], b.shape[1]
    expected = ((), ()) if scale_a.ndim == 0 else ((rows, 1), (1, columns))
    assert (tuple(scale_a.shape), tuple(scale_b.shape)) == expected
    assert scale_a.is_contiguous() and scale_b.is_contiguous()
    return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)


@pytest.fixture
def matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", simulated, raising=False)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor, most: float) -> bool:
    return bool((found.float() - expected.float()).norm() <= most * expected.float().norm())


@pytest.mark.parametrize("scheme", [BY_ROW, BY_TENSOR, Scheme(format="e5m2", granularity="channel")], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 64), (2, 3, 64), (64,)])
def test_it_equals_the_ordinary_product_but_for_the_activations_rounding(matmul, scheme, dtype, shape):
    made, x, bias = quantise(numbers(48, 64), scheme), numbers(*shape, seed=1).to(dtype), numbers(48, seed=2)
    found = fp8_matmul(x, made.codes, made.scale, bias.to(dtype))
    weight = dequantise(made.codes, made.scale, torch.float32)
    expected = x.float() @ weight.T + bias
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert near(found, expected, 0.05)


def test_large_and_empty_activations_are_scaled_into_range(matmul):
    made = quantise(numbers(16, 32), BY_ROW)
    x = numbers(3, 32, seed=1)
    x[0] *= 1e6
    x[1] = 0
    found = fp8_matmul(x, made.codes, made.scale, None)
    expected = x @ dequantise(made.codes, made.scale, torch.float32).T
    assert near(found[0], expected[0], 0.05) and near(found[2], expected[2], 0.05)
    assert not found[1].any()


@pytest.mark.parametrize("scheme", [BY_ROW, BY_TENSOR], ids=str)
def test_the_simulation_is_what_this_processor_computes(scheme, monkeypatch):
    made, x = quantise(numbers(48, 64), scheme), numbers(32, 64, seed=1)
    try:
        real = fp8_matmul(x, made.codes, made.scale, None)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"torch {torch.__version__} has no fp8 product on this processor: {error}")
    monkeypatch.setattr(torch, "_scaled_mm", simulated, raising=False)
    torch.testing.assert_close(real, fp8_matmul(x, made.codes, made.scale, None), rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", [BY_ROW, BY_TENSOR], ids=str)
def test_a_layer_uses_it_forward_and_the_exact_weight_backward(matmul, scheme):
    made = quantise(numbers(48, 64), scheme)
    fast = Fp8Linear(made.codes, made.scale, numbers(48, seed=2), fast=True)
    plain = Fp8Linear(made.codes, made.scale, numbers(48, seed=2))
    one, other = (numbers(5, 64, seed=1).requires_grad_() for _ in range(2))
    found, expected = fast(one), plain(other)
    assert not torch.equal(found, expected) and near(found, expected, 0.05)
    weights = numbers(5, 48, seed=3)
    found.backward(weights)
    expected.backward(weights)
    assert torch.equal(one.grad, other.grad)


def test_a_processor_is_named_as_the_reason():
    assert "this is cpu" in why_no_fp8_matmul(torch.device("cpu"), by_row=True)


def test_sizes_must_be_multiples_of_16():
    assert fits_fp8_matmul(48, 64)
    assert not fits_fp8_matmul(48, 70)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", [BY_ROW, BY_TENSOR], ids=str)
def test_a_card_computes_what_the_simulation_does(scheme):
    cuda = torch.device("cuda")
    reason = why_no_fp8_matmul(cuda, by_row=scheme is BY_ROW)
    if reason:
        pytest.skip(reason)
    made = quantise(numbers(256, 512).to(cuda), scheme)
    x, bias = numbers(64, 512, seed=1).to(cuda, torch.bfloat16), numbers(256, seed=2).to(cuda, torch.bfloat16)
    found = fp8_matmul(x, made.codes, made.scale, bias)
    expected = x.float() @ dequantise(made.codes, made.scale, torch.float32).T + bias.float()
    assert near(found, expected, 0.05)
    layer = Fp8Linear(made.codes, made.scale, bias, fast=True)
    inputs = x.clone().requires_grad_()
    layer(inputs).sum().backward()
    assert near(inputs.grad, dequantise(made.codes, made.scale, torch.float32).sum(0).expand(64, -1), 0.02)
