"""Linear layers with a plain float8 weight."""

from __future__ import annotations

import torch
from torch import nn

from musubi_core.quantization.fp8_linear import FP8, Fp8Linear, to_fp8, use_fp8_linears


def test_it_equals_a_linear_layer_with_the_rounded_weight():
    torch.manual_seed(0)
    plain, x = nn.Linear(24, 16), torch.randn(3, 24)
    layer = Fp8Linear(to_fp8(plain.weight.detach()), plain.bias)
    rounded = plain.weight.detach().to(FP8).float()
    assert torch.equal(layer(x), nn.functional.linear(x, rounded, plain.bias))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_weights_out_of_range_become_the_largest_number_not_nan():
    assert to_fp8(torch.tensor([1e6, -1e6, 1.0])).float().tolist() == [448.0, -448.0, 1.0]


def test_only_layers_loaded_as_fp8_are_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4, bias=False)), nn.LayerNorm(4))
    inner = model[1][0]
    inner.weight = nn.Parameter(to_fp8(inner.weight.detach()), requires_grad=False)
    use_fp8_linears(model)
    assert type(model[0]) is nn.Linear
    assert type(model[1][0]) is Fp8Linear
    assert model[1][0].weight.data_ptr() == inner.weight.data_ptr()
    assert not model[1][0].weight.requires_grad


def test_a_gradient_flows_through_to_what_lies_before():
    layer = Fp8Linear(to_fp8(torch.randn(4, 4)), None)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
