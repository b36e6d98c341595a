"""The linear layer with an 8-bit weight: same numbers as a plain one, half the memory, nothing kept alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from musubi_core.networks.layer import layer_of
from musubi_core.quantization import fp8_linear
from musubi_core.quantization.fp8 import FP8, dequantise, quantise, to_fp8
from musubi_core.quantization.fp8_linear import Fp8Linear, put_fp8_linears, use_fp8_linears
from musubi_core.quantization.scheme import GRANULARITIES, QuantisationConfig, Scheme

KINDS = [*GRANULARITIES, "plain"]


def layer_of_kind(kind: str, *, bias: bool = True, inputs: int = 128, outputs: int = 48) -> Fp8Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    shift = torch.randn(outputs, generator=generator) if bias else None
    if kind == "plain":
        return Fp8Linear(to_fp8(weight), None, shift)
    made = quantise(weight, Scheme(granularity=kind))
    return Fp8Linear(made.codes, made.scale, shift)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.requires_grad_()


def plain_twin(layer: Fp8Linear, dtype: torch.dtype = torch.float32) -> nn.Linear:
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    twin.weight = nn.Parameter(dequantise(layer.weight, layer.scale_weight, dtype), requires_grad=False)
    if layer.bias is not None:
        twin.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 128), (2, 3, 128), (128,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_weight_multiplied_out(kind, bias, shape, dtype):
    layer = layer_of_kind(kind, bias=bias)
    found, expected = inputs(*shape, dtype=dtype), inputs(*shape, dtype=dtype)
    ours, theirs = layer(found), plain_twin(layer, dtype)(expected)
    assert torch.equal(ours, theirs)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    ours.backward(weights)
    theirs.backward(weights)
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_function(kind):
    layer = layer_of_kind(kind, inputs=64, outputs=3).to(torch.float64)
    x = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_bias_that_is_trained_gets_its_gradient():
    layer = layer_of_kind("block")
    layer.bias.requires_grad_()
    layer(inputs(2, 5, 128)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((48,), 10.0))
    assert layer.weight.grad is None


def test_a_weight_multiplied_out_does_not_outlive_the_call(monkeypatch):
    made: list[weakref.ref[Tensor]] = []

    def watched(*args: object) -> Tensor:
        weight = dequantise(*args)  # type: ignore[arg-type]
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(fp8_linear, "dequantise", watched)
    model = nn.Sequential(layer_of_kind("block", outputs=128), layer_of_kind("plain", outputs=128))
    output = model(inputs(4, 128))
    gc.collect()
    assert len(made) == 2
    assert not any(reference() is not None for reference in made)
    output.sum().backward()
    gc.collect()
    assert len(made) == 4
    assert not any(reference() is not None for reference in made)


def test_what_is_kept_for_the_backward_pass_is_8_bit():
    layer, kept = layer_of_kind("block"), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(inputs(4, 128))
    assert {tensor.dtype for tensor in kept if tensor.numel() >= layer.weight.numel()} == {FP8}
    assert sum(tensor.nbytes for tensor in kept) < layer.weight.numel() * 1.1


def test_autocast_decides_the_dtype():
    layer = layer_of_kind("block")
    x = inputs(4, 128)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    output.float().sum().backward()
    expected = functional.linear(
        x.detach().bfloat16(),
        dequantise(layer.weight, layer.scale_weight, torch.bfloat16),
        layer.bias.bfloat16(),
    )
    assert torch.equal(output, expected)
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(reentrant):
    layer = layer_of_kind("block")
    found, expected = inputs(4, 128), inputs(4, 128)
    checkpoint(layer, found, use_reentrant=reentrant).square().sum().backward()
    layer(expected).square().sum().backward()
    assert torch.equal(found.grad, expected.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_in_one_piece(kind):
    layer = layer_of_kind(kind)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found, expected = inputs(4, 128), inputs(4, 128)
    ours, theirs = compiled(found), layer(expected)
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to("cpu", torch.float16),
    ],
)
def test_a_model_that_is_cast_keeps_codes_and_scales(change):
    model = nn.Sequential(layer_of_kind("block"), nn.Linear(48, 4))
    codes, scale = model[0].weight.clone(), model[0].scale_weight.clone()
    change(model)
    assert torch.equal(model[0].weight.view(torch.uint8), codes.view(torch.uint8))
    assert (model[0].weight.dtype, model[0].scale_weight.dtype) == (FP8, torch.float32)
    assert torch.equal(model[0].scale_weight, scale)
    assert model[0].bias.dtype == model[1].weight.dtype != torch.float32


def test_it_can_be_moved_and_emptied_like_any_layer():
    layer = layer_of_kind("block").to("meta")
    assert layer.weight.is_meta and layer.scale_weight.is_meta and layer.bias.is_meta
    again = layer.to_empty(device="cpu")
    assert (again.weight.dtype, again.scale_weight.dtype) == (FP8, torch.float32)


def test_its_state_is_codes_scale_and_bias():
    layer, other = layer_of_kind("block"), layer_of_kind("block")
    assert {name: t.dtype for name, t in layer.state_dict().items()} == {
        "weight": FP8,
        "scale_weight": torch.float32,
        "bias": torch.float32,
    }
    nn.init.zeros_(other.scale_weight)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.scale_weight, layer.scale_weight)


def test_adapters_see_a_linear_layer():
    found = layer_of("x", layer_of_kind("block"))
    assert (found.kind, found.shape) == ("Linear", (48, 128))


def test_only_layers_loaded_as_fp8_are_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4, bias=False)), nn.LayerNorm(4))
    inner = model[1][0]
    inner.weight = nn.Parameter(to_fp8(inner.weight.detach()), requires_grad=False)
    use_fp8_linears(model)
    assert type(model[0]) is nn.Linear
    assert type(model[1][0]) is Fp8Linear
    assert model[1][0].weight.data_ptr() == inner.weight.data_ptr()
    assert not model[1][0].weight.requires_grad


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.Linear(64, 64), "img_mod": nn.Linear(64, 64), "odd": nn.Linear(70, 64)})
            for _ in range(2)
        )
        self.double_blocks = nn.Linear(64, 64)


def test_only_linear_layers_inside_the_targets_are_covered():
    with torch.device("meta"):
        model = Blocks()
    placed = put_fp8_linears(model, QuantisationConfig(targets=("blocks",), keep_precise=("mod",)))
    assert list(placed) == ["blocks.0.attn", "blocks.0.odd", "blocks.1.attn", "blocks.1.odd"]
    assert model.get_submodule("blocks.1.attn") is placed["blocks.1.attn"]
    assert placed["blocks.0.attn"].scale_weight.shape == (64, 1, 1)
    assert placed["blocks.0.odd"].scale_weight.shape == (64, 1)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_a_plain_cast_has_no_scales():
    with torch.device("meta"):
        model = Blocks()
    placed = put_fp8_linears(model, QuantisationConfig(targets=("blocks",), scheme=None))
    assert all(layer.scale_weight is None and layer.weight.dtype == FP8 for layer in placed.values())
