"""Weights become 8-bit codes with scales: exact to what the format allows, whatever they hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.quantization.fp8 import (
    CHUNK,
    DTYPES,
    FP8,
    dequantise,
    quantise,
    quantise_rows,
    relative_error,
    to_fp8,
)
from musubi_core.quantization.scheme import FORMATS, GRANULARITIES, Scheme

EVERY_SCHEME = [Scheme(format=f, granularity=g) for f in FORMATS for g in GRANULARITIES]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()


def error_of(weight: Tensor, scheme: Scheme) -> float:
    made = quantise(weight, scheme)
    return relative_error(weight, made.codes, made.scale)


def peer(weight: Tensor) -> Tensor:
    """What musubi-tuner's quantiser makes of a bf16 matrix (lora-and-fp8.md 6.2): its scale is used in
    float32, then stored in bf16. The product is exact here, which is kinder than its own in bf16.
    """
    inputs = weight.shape[1]
    grouped = weight.float().unflatten(1, (-1, 64)) if inputs % 64 == 0 else weight.float()
    scale = (grouped.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-8)
    codes = (grouped / scale).nan_to_num(0).clamp(-448, 448).to(FP8)
    return (codes.float() * scale.bfloat16().float()).reshape(weight.shape)


def rms(error: Tensor, weight: Tensor) -> float:
    return (error.double().square().sum() / weight.double().square().sum()).sqrt().item()


@pytest.mark.parametrize(
    ("scheme", "low", "high"),
    [
        (Scheme(), 0.0250, 0.0252),
        (Scheme(granularity="channel"), 0.0263, 0.0266),
        (Scheme(granularity="tensor"), 0.0264, 0.0266),
        (Scheme(block=128), 0.0255, 0.0259),
        (Scheme(block=32), 0.0238, 0.0242),
        (Scheme(format="e5m2"), 0.0495, 0.0505),
    ],
)
def test_gaussian_weights_have_the_error_that_the_format_allows(scheme, low, high):
    assert low <= error_of(gaussian(1024, 1024), scheme) <= high


def test_a_scale_beats_a_plain_cast():
    weight = gaussian(512, 512)
    assert relative_error(weight, to_fp8(weight), None) > 1.2 * error_of(weight, Scheme())


# Large enough for an average: in a handful of weights, a scale may be rounded to a better one by luck.
@pytest.mark.parametrize("shape", [(256, 256), (512, 200), (3, 20480), (640, 64)])
@pytest.mark.parametrize("kind", ["gaussian", "outliers", "tiny", "sparse"])
def test_no_weight_is_further_off_than_with_the_peers_scheme(shape, kind):
    weight = gaussian(*shape, seed=3)
    if kind == "outliers":
        weight[:, ::17] *= 300
    if kind == "tiny":
        weight *= 1e-20
    if kind == "sparse":
        weight[torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.9] = 0
    assert error_of(weight, Scheme()) <= rms(peer(weight) - weight.float(), weight)


def test_blocks_keep_an_outlier_from_its_neighbours():
    weight = gaussian(128, 256)
    weight[:, 7] *= 1000
    rest = torch.ones(256, dtype=torch.bool)
    rest[:64] = False
    for granularity, most in (("block", 0.026), ("channel", 1.0)):
        made = quantise(weight, Scheme(granularity=granularity))
        error = (dequantise(made.codes, made.scale, torch.float32) - weight.float())[:, rest]
        assert rms(error, weight[:, rest].float()) <= most


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_codes_come_back_from_what_they_stand_for(scheme, dtype):
    made = quantise(gaussian(64, 256).to(dtype), scheme)
    again = quantise(dequantise(made.codes, made.scale, torch.float32), scheme)
    assert torch.equal(again.codes.view(torch.uint8), made.codes.view(torch.uint8))
    torch.testing.assert_close(again.scale, made.scale, rtol=2e-7, atol=0)


def test_bf16_in_between_changes_no_code_either():
    made = quantise(gaussian(256, 512), Scheme())
    again = quantise(dequantise(made.codes, made.scale, torch.bfloat16), Scheme())
    assert torch.equal(again.codes.view(torch.uint8), made.codes.view(torch.uint8))


@pytest.mark.parametrize("shape", [(5,), (1,), (), (4, 3, 1, 3, 3), (7, 1), (3, 65), (2, 64)])
@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
def test_weights_of_every_shape_have_a_scheme_that_fits(shape, scheme):
    weight = gaussian(*shape)
    made = quantise(weight, scheme)
    fitting = scheme.fitting(weight.shape)
    assert made.codes.shape == weight.shape
    assert (made.codes.dtype, made.scale.dtype) == (DTYPES[scheme.format], torch.float32)
    assert made.scale.shape == fitting.scale_shape(weight.shape)
    assert error_of(weight, scheme) <= 0.0626 * (1 if scheme.format == "e4m3" else 2)


@pytest.mark.parametrize(
    ("shape", "asked", "got"),
    [
        ((8, 128), "block", "block"),
        ((8, 100), "block", "channel"),
        ((8, 100), "channel", "channel"),
        ((8,), "block", "tensor"),
        ((8, 64, 3, 3), "channel", "tensor"),
        ((8, 64), "tensor", "tensor"),
    ],
)
def test_the_fallback_is_the_next_coarser_scheme(shape, asked, got):
    assert Scheme(granularity=asked).fitting(shape).granularity == got


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
def test_zeros_stay_zeros(scheme):
    weight = torch.zeros(4, 128)
    weight[0, 0] = 1.0
    made = quantise(weight, scheme)
    assert torch.equal(dequantise(made.codes, made.scale, torch.float32), weight)
    nothing = quantise(torch.zeros(4, 128), scheme)
    assert nothing.scale.min() > 0
    assert not dequantise(nothing.codes, nothing.scale, torch.float32).any()


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-10, 1e10, 1e30, 3e38])
def test_numbers_of_every_size_are_scaled_into_range(scheme, size):
    weight = torch.linspace(-1, 1, 256).reshape(2, 128) * size
    error = error_of(weight, scheme)
    assert error <= (0.03 if scheme.format == "e4m3" else 0.06)


def test_denormal_weights_do_not_divide_by_zero():
    weight = torch.full((2, 64), 1e-44)
    made = quantise(weight, Scheme())
    assert dequantise(made.codes, made.scale, torch.float32).isfinite().all()


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_a_number_is_refused_by_name(scheme, wrong):
    weight = gaussian(70, 128)
    weight[69, 127] = wrong
    with pytest.raises(BadFileError, match=r"^a\.weight holds NaN or infinity"):
        quantise(weight, scheme, name="a.weight")


def test_the_largest_weight_has_the_largest_code_and_none_is_beyond():
    for scheme in EVERY_SCHEME:
        largest = torch.finfo(DTYPES[scheme.format]).max
        codes = quantise(gaussian(256, 640, seed=1), scheme).codes.float()
        assert codes.abs().max() == largest


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=str)
def test_reading_in_parts_gives_the_bits_of_the_whole(scheme, monkeypatch):
    weight = gaussian(37, 128)
    whole = quantise(weight, scheme)
    monkeypatch.setitem(CHUNK, "cpu", 5 * 128)
    seen = []

    def read(start: int, stop: int) -> Tensor:
        seen.append(stop - start)
        return weight[start:stop]

    parts = quantise_rows(read, weight.shape, scheme, device=weight.device, name="w")
    assert max(seen) == 5
    assert torch.equal(parts.codes.view(torch.uint8), whole.codes.view(torch.uint8))
    assert torch.equal(parts.scale, whole.scale)


def test_the_weight_is_left_as_it_was():
    for dtype in (torch.float32, torch.bfloat16):
        weight = gaussian(8, 64).to(dtype)
        before = weight.clone()
        quantise(weight, Scheme())
        assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_codes_stand_for_is_rounded_only_once(dtype):
    for scheme in EVERY_SCHEME:
        made = quantise(gaussian(16, 128), scheme)
        exact = dequantise(made.codes, made.scale, torch.float32)
        assert torch.equal(dequantise(made.codes, made.scale, dtype), exact.to(dtype))


def test_weights_out_of_range_become_the_largest_number_not_nan():
    assert to_fp8(torch.tensor([1e6, -1e6, 1.0])).float().tolist() == [448.0, -448.0, 1.0]
