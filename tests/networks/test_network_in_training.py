"""Adapters on a model: exactly nothing at the start, everything that training needs, no trace afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from musubi_core.networks.lora import lora_delta
from musubi_core.networks.norms import scale_weight_norms


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_network_changes_no_bit(build, model, x, dtype):
    model.to(dtype)
    base = model(x.to(dtype))
    build().apply_to(model)
    assert torch.equal(model(x.to(dtype)), base)


def test_a_new_network_changes_no_bit_of_hunyuan_video_and_all_its_adapters_learn(
    build, tiny_hunyuan, hunyuan_targets
):
    noise = torch.Generator().manual_seed(1)
    inputs = {
        "x": torch.randn(1, 16, 2, 4, 4, generator=noise),
        "t": torch.tensor([500.0]),
        "text": torch.randn(1, 6, 32, generator=noise),
        "lengths": (6,),
        "pooled": torch.randn(1, 768, generator=noise),
        "guidance": torch.tensor([6000.0]),
    }
    base = tiny_hunyuan(**inputs)
    network = build(tiny_hunyuan, targets=hunyuan_targets)
    network.apply_to(tiny_hunyuan)
    assert len(network.adapters) == 2 * 8 + 2 * 2
    assert torch.equal(tiny_hunyuan(**inputs), base)
    tiny_hunyuan(**inputs).square().sum().backward()
    silent = [name for name, a in network.adapters.items() if not a.weights.lora_up.weight.grad.any()]
    assert not silent


def test_the_base_model_keeps_its_classes_names_and_parameters(build, model):
    before = [(name, type(module)) for name, module in model.named_modules()]
    keys = list(model.state_dict())
    network = build()
    network.apply_to(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert list(model.state_dict()) == keys
    ours = {id(parameter) for parameter in network.parameters()}
    assert not ours & {id(parameter) for parameter in model.parameters()}


def test_removing_leaves_no_trace(build, model, x):
    base = model(x)
    network = build(trained=True)
    network.apply_to(model)
    assert not torch.equal(model(x), base)
    network.remove()
    assert torch.equal(model(x), base)
    assert not any(module._forward_hooks for module in model.modules())


def test_applying_twice_adds_once_and_follows_a_replaced_layer(build, model, x):
    network = build(trained=True)
    network.apply_to(model)
    once = model(x)
    network.apply_to(model)
    assert torch.equal(model(x), once)
    copy = nn.Linear(8, 24)
    copy.load_state_dict(model.blocks[0].attn_qkv.state_dict())
    model.blocks[0].attn_qkv = copy
    assert not torch.equal(model(x), once)
    network.apply_to(model)
    assert torch.equal(model(x), once)


def test_a_lost_layer_is_named(build, model):
    network = build()
    del model.blocks[0].attn_qkv
    with pytest.raises(ValueError, match=r"no layer blocks\.0\.attn_qkv"):
        network.apply_to(model)


def test_multiplier_and_enabled_act_at_run_time(build, model, x):
    base = model(x)
    network = build(trained=True)
    network.apply_to(model)
    full = model(x)
    network.multiplier = 0.0
    assert torch.equal(model(x), base)
    network.multiplier, network.enabled = 1.0, False
    assert torch.equal(model(x), base)
    network.enabled = True
    assert torch.equal(model(x), full)


def test_a_bfloat16_base_keeps_its_dtype_and_adapters_stay_float32(build, model, x):
    model.bfloat16()
    network = build(trained=True)
    network.apply_to(model)
    layer, adapter = model.blocks[0].attn_qkv, network.adapters["blocks.0.attn_qkv"]
    h = torch.randn(2, 8).bfloat16()
    found = layer(h)
    delta = adapter.scale * lora_delta(dict(adapter.weights.named_parameters()), (24, 8))
    expected = nn.functional.linear(h, layer.weight, layer.bias).double() + h.double() @ delta.double().T
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_under_autocast_the_matrices_multiply_in_the_autocast_dtype(build, model):
    network = build(trained=True)
    weights = network.adapters["blocks.0.attn_qkv"].weights
    seen = []  # an input lifted to float32 first would cost memory for nothing
    weights.lora_down.register_forward_hook(
        lambda _, args, output: seen.extend([args[0].dtype, output.dtype])
    )
    network.apply_to(model.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 4).bfloat16()).dtype is torch.bfloat16
    assert seen == [torch.bfloat16, torch.bfloat16]


def test_checkpointing_with_every_dropout_gives_the_same_gradients(build, model, x):
    dropouts = ("rank_dropout=0.3", "module_dropout=0.3")
    network = build(trained=True, network_dropout=0.3, network_args=dropouts)
    network.apply_to(model)

    def gradients(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(11)
        network.zero_grad()
        h = model.img_in(x)
        for block in model.blocks:
            h = checkpoint(block, h, use_reentrant=False) if recompute else block(h)
        h.square().sum().backward()
        return [torch.zeros(1) if p.grad is None else p.grad for p in network.parameters()]

    straight = gradients(False)
    assert any(gradient.any() for gradient in straight)
    assert all(torch.equal(a, b) for a, b in zip(straight, gradients(True), strict=True))


def test_module_dropout_leaves_whole_adapters_out_without_rescaling(build, model):
    network = build(trained=True, network_args=("module_dropout=0.5",))
    network.apply_to(model)
    layer, h = model.blocks[0].attn_qkv, torch.randn(2, 8)
    network.eval()
    full = layer(h)
    network.enabled = False
    base = layer(h)
    network.enabled = True
    network.train()
    torch.manual_seed(0)
    outputs = [layer(h) for _ in range(200)]
    left_out = sum(torch.equal(output, base) for output in outputs)
    assert all(torch.equal(output, base) or torch.equal(output, full) for output in outputs)
    assert 70 < left_out < 130


def test_a_compiled_block_uses_the_adapter_and_its_multiplier(build, model):
    network = build(trained=True)
    network.apply_to(model)
    h = torch.randn(2, 8)
    block = model.blocks[0]
    strengths = (1.0, 0.5, 0.0)

    def outputs() -> list[torch.Tensor]:
        found = []
        for network.multiplier in strengths:
            found.append(block(h))
        return found

    plain = outputs()
    block.compile(backend="eager")
    for compiled, expected in zip(outputs(), plain, strict=True):
        torch.testing.assert_close(compiled, expected)
    assert not torch.allclose(plain[0], plain[1])


def test_loraplus_trains_the_up_matrices_faster(build):
    network = build(network_args=("loraplus_lr_ratio=4",))
    groups = network.parameter_groups(1e-4)
    assert [(group["name"], group["lr"]) for group in groups] == [("unet", 1e-4), ("unet plus", 4e-4)]
    ups = [adapter.weights.lora_up.weight for adapter in network.adapters.values()]
    assert all(a is b for a, b in zip(groups[1]["params"], ups, strict=True))
    torch.optim.AdamW(groups)


def test_without_loraplus_there_is_one_group_with_every_parameter(build):
    network = build()
    (group,) = network.parameter_groups(1e-4)
    assert group["name"] == "unet" and len(group["params"]) == len(list(network.parameters())) == 18


def test_the_state_dict_restores_weights_and_alphas_exactly(build):
    source = build(trained=True, network_alpha=37.3)
    network = build(seed=1, network_alpha=1.0)
    network.load_state_dict(source.state_dict())
    assert network.adapters["blocks.0.attn_qkv"].scale == source.adapters["blocks.0.attn_qkv"].scale
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), source.parameters(), strict=True))
    assert all(isinstance(tensor, torch.Tensor) for tensor in source.state_dict().values())


def test_casting_the_weights_does_not_change_the_strength(build):
    network = build(network_alpha=37.3)
    before = network.adapters["blocks.0.attn_qkv"].scale
    network.to(torch.bfloat16).load_state_dict(network.state_dict())
    assert network.adapters["blocks.0.attn_qkv"].scale == before


def dense_norm(adapter) -> torch.Tensor:
    tensors = {name: p.double() for name, p in adapter.weights.named_parameters()}
    return (adapter.scale * lora_delta(tensors, adapter.layer.shape)).norm().detach()


def test_scale_weight_norms_equals_the_dense_formula(build):
    network = build(trained=True, network_alpha=6.0)
    norms = {name: dense_norm(adapter) for name, adapter in network.adapters.items()}
    limit = sorted(norms.values())[4].item() * 1.001  # some above, some below
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    report = scale_weight_norms([network], limit)
    expected = {name: min(norm, torch.tensor(limit)) for name, norm in norms.items()}
    for name, adapter in network.adapters.items():
        torch.testing.assert_close(
            dense_norm(adapter), torch.as_tensor(expected[name]).double(), rtol=1e-5, atol=0
        )
        if norms[name] < limit:  # untouched to the bit
            key = f"weights.lora_unet_{name.replace('.', '_')}.lora_down.weight"
            assert torch.equal(network.get_parameter(key), before[key])
    assert report.scaled == sum(norm > limit for norm in norms.values()) == 4
    assert report.largest == pytest.approx(limit, rel=1e-5)
    assert report.mean == pytest.approx(float(sum(expected.values())) / len(expected), rel=1e-5)


def test_scale_weight_norms_shares_the_shrinking_between_both_matrices(build):
    network = build(trained=True)
    up = network.adapters["blocks.0.attn_qkv"].weights.lora_up.weight
    down = network.adapters["blocks.0.attn_qkv"].weights.lora_down.weight
    before = up.norm().item(), down.norm().item()
    scale_weight_norms([network], 0.01)
    assert up.norm().item() / before[0] == pytest.approx(down.norm().item() / before[1], rel=1e-5)


def test_scale_weight_norms_leaves_a_new_network_alone(build):
    network = build()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    report = scale_weight_norms([network], 1.0)
    assert (report.scaled, report.mean, report.largest) == (0, 0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
