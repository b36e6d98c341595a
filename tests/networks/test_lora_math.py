"""LoRA's arithmetic against dense weights, torch's own convolutions and LyCORIS."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lycoris.functional.locon import diff_weight
from torch import nn

from musubi_core.errors import ConfigError
from musubi_core.networks.kind import AdapterSettings
from musubi_core.networks.layer import layer_of
from musubi_core.networks.lora import DOWN, KIND, UP, Lora, drop_ranks, lora_delta
from musubi_core.networks.network import add_change

LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (3, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 3, padding=1), (3, 6, 9)),
    "conv2d 1x1": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 7, 7)),
    "conv2d 3x3": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (3, 6, 7, 7)),
    "conv2d same": (lambda: nn.Conv2d(6, 10, (3, 5), padding="same"), (3, 6, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(6, 10, (1, 2, 2), stride=(1, 2, 2)), (3, 6, 2, 6, 6)),
    "conv3d 3x3x3": (lambda: nn.Conv3d(6, 10, 3, padding=1), (3, 6, 3, 6, 6)),
}


@pytest.fixture(params=LAYERS, ids=str)
def case(request):
    """(a float64 layer, its input, a trained LoRA for it in float64)."""
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    layer = make().double()
    lora = Lora(layer_of("x", layer), AdapterSettings(rank=4, alpha=2.0), torch.Generator()).double()
    for parameter in lora.parameters():
        parameter.detach().normal_()
    return layer, torch.randn(shape, dtype=torch.float64), lora


def test_an_applied_adapter_equals_a_merged_one(case):
    layer, x, lora = case
    strength = 0.7
    applied = add_change(layer(x), lora(x), strength)
    layer.weight.data += strength * lora_delta(dict(lora.named_parameters()), tuple(layer.weight.shape))
    torch.testing.assert_close(applied, layer(x), atol=1e-6, rtol=1e-6)


def test_delta_equals_lycoris(case):
    layer, _, lora = case
    tensors = {name: p.detach().float() for name, p in lora.named_parameters()}
    expected = diff_weight(tensors[DOWN], tensors[UP], None, gamma=1.0, backend="torch")
    torch.testing.assert_close(
        lora_delta(tensors, tuple(layer.weight.shape)), expected.reshape(layer.weight.shape)
    )


def test_delta_of_a_convolution_equals_convolving_down_by_up():
    down, up = torch.randn(4, 6, 3, 3), torch.randn(10, 4, 1, 1)
    expected = F.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
    delta = lora_delta({DOWN: down, UP: up}, (10, 6, 3, 3))
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-5)


def test_the_norm_needs_no_dense_matrix_and_equals_its_norm(case):
    layer, _, lora = case
    dense = lora_delta(dict(lora.named_parameters()), tuple(layer.weight.shape)).norm()
    torch.testing.assert_close(KIND.norm(lora), dense, rtol=1e-5, atol=0)


def test_the_start_is_uniform_and_drawn_from_the_given_generator_alone():
    before = torch.get_rng_state()
    layer = layer_of("x", nn.Conv2d(64, 32, 3))
    torch.set_rng_state(before)
    first, second = (Lora(layer, AdapterSettings(rank=64, alpha=1), torch.Generator()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.lora_down.weight, second.lora_down.weight)
    bound = (64 * 9) ** -0.5  # Kaiming uniform, a = sqrt(5)
    assert 0.99 * bound < first.lora_down.weight.abs().max() <= bound
    assert first.lora_down.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not first.lora_up.weight.any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv1d(4, 4, 3, padding_mode="circular"),
    ],
)
def test_a_layer_that_lora_cannot_follow_is_refused_by_name(layer: nn.Module):
    with pytest.raises(ConfigError, match=r"down.conv is a Conv"):
        layer_of("down.conv", layer).check()


def test_the_sum_is_rounded_once():
    output = torch.full((1,), 1.0, dtype=torch.bfloat16)
    change = torch.full((1,), 0.0039, dtype=torch.float32)  # just under half a step of bfloat16 at 1
    assert add_change(output, change, 1.0).dtype is torch.bfloat16
    # In bfloat16 alone, 0.0039 * 1.01 would first become 0.003937 and then round differently.
    assert add_change(output, change, 1.01) == (output.double() + 1.01 * change.double()).bfloat16()


def test_rank_dropout_draws_once_per_item_and_keeps_the_mean():
    torch.manual_seed(0)
    h = torch.ones(2000, 3, 5)
    dropped = drop_ranks(h, 0.25, axis=-1)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))  # all tokens of an item alike
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert drop_ranks(torch.ones(2, 5, 3, 4, 4), 0.5, axis=1).flatten(2).std(dim=2).max() == 0


def test_dropouts_act_in_training_only():
    settings = AdapterSettings(rank=4, alpha=4, dropout=0.5, rank_dropout=0.5)
    lora = Lora(layer_of("x", nn.Linear(6, 10)), settings, torch.Generator())
    lora.lora_up.weight.detach().normal_()
    x = torch.randn(3, 5, 6)
    assert not torch.equal(lora(x), lora(x))
    lora.eval()
    assert torch.equal(lora(x), lora(x))


def test_network_dropout_is_dropout_between_the_matrices():
    lora = Lora(
        layer_of("x", nn.Linear(6, 10)), AdapterSettings(rank=4, alpha=4, dropout=0.3), torch.Generator()
    )
    lora.lora_up.weight.detach().normal_()
    x = torch.randn(3, 5, 6)
    torch.manual_seed(7)
    found = lora(x)
    torch.manual_seed(7)
    h = F.dropout(F.linear(x, lora.lora_down.weight), 0.3)
    assert torch.equal(found, F.linear(h, lora.lora_up.weight))
