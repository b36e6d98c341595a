"""Promises of the network's forward pass that need no oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.device.attention import check_attention
from musubi_core.errors import ConfigError, MissingLibraryError
from musubi_core.models.hunyuan_video.model import ROPE_TABLES, HunyuanVideo, unpatchify
from musubi_core.models.hunyuan_video.rope import rope_table, rotate

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def one_of(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    """Sample `index` of a batch, alone."""
    return {
        name: value[index : index + 1] if isinstance(value, Tensor) else (value[index],)
        for name, value in inputs.items()
    }


def trainable(network: HunyuanVideo) -> list[nn.Parameter]:
    """A few weights of every kind of block, set to need gradients."""
    weights = [
        network.txt_in.input_embedder.weight,
        network.double_blocks[0].img_attn_qkv.weight,
        network.double_blocks[1].txt_mlp.fc2.weight,
        network.single_blocks[1].linear1.weight,
    ]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def gradients(network: HunyuanVideo, inputs: dict[str, Any]) -> list[Tensor]:
    weights = trainable(network)
    network(**inputs).square().mean().backward()
    found = [weight.grad for weight in weights]
    network.zero_grad()
    return found


def test_a_batch_of_two_equals_two_singles(hunyuan, hunyuan_inputs):
    network, inputs = hunyuan(), hunyuan_inputs()
    batch = network(**inputs)
    singles = torch.cat([network(**one_of(inputs, index)) for index in range(2)])
    torch.testing.assert_close(batch, singles, **CLOSE)


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_what_stands_in_text_padding_never_matters(hunyuan, hunyuan_inputs, garbage: float):
    network, inputs = hunyuan(), hunyuan_inputs()
    expected = network(**inputs)
    for row, length in enumerate(inputs["lengths"]):
        inputs["text"][row, length:] = garbage
    assert torch.equal(network(**inputs), expected)


def test_every_valid_text_token_matters(hunyuan, hunyuan_inputs):
    network, inputs = hunyuan(), hunyuan_inputs()
    expected = network(**inputs)
    inputs["text"][0, inputs["lengths"][0] - 1] += 1
    changed = network(**inputs)
    assert not torch.allclose(changed[0], expected[0], atol=1e-4)
    assert torch.equal(changed[1], expected[1])


def test_split_attention_equals_joint_attention(hunyuan, hunyuan_inputs):
    inputs = hunyuan_inputs()
    joint = hunyuan(split_attention=False)
    split = hunyuan(split_attention=True)
    torch.testing.assert_close(joint(**inputs), split(**inputs), **CLOSE)
    for one, other in zip(gradients(joint, inputs), gradients(split, inputs), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("attention", ["flash_attn", "flash3", "xformers", "sage_attn"])
def test_every_installed_attention_agrees_with_sdpa(hunyuan, hunyuan_inputs, attention: str, split: bool):
    device = torch.device("cuda")
    try:
        check_attention(attention, training=False, device=device)
    except MissingLibraryError:
        pytest.skip(f"{attention} is not installed")
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in hunyuan_inputs().items()
    }
    exact, other = (
        hunyuan(attention=kind, split_attention=split).to(device, torch.bfloat16)(**inputs).float()
        for kind in ("sdpa", attention)
    )
    assert (exact - other).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.gpu
def test_a_forward_pass_never_makes_the_card_wait(hunyuan, hunyuan_inputs):
    device = torch.device("cuda")
    network = hunyuan().to(device)
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in hunyuan_inputs().items()
    }
    network(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_checkpointing_changes_no_bit_of_output_or_gradient(hunyuan, hunyuan_inputs):
    inputs = hunyuan_inputs()
    plain, saving = hunyuan(), hunyuan(checkpointing=True)
    assert torch.equal(plain(**inputs), saving(**inputs))
    for one, other in zip(gradients(plain, inputs), gradients(saving, inputs), strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one, other)


def test_checkpointing_redraws_the_same_dropout(hunyuan, hunyuan_inputs):
    class Dropped(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.linear(x), 0.5)

    found = []
    for checkpointing in (False, True):
        network = hunyuan(checkpointing=checkpointing)
        weights = trainable(network)
        for block in network.single_blocks:
            block.linear1 = Dropped(block.linear1)
        torch.manual_seed(11)
        network(**hunyuan_inputs()).square().mean().backward()
        found.append([weight.grad for weight in weights])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_checkpointing_keeps_fewer_activations(hunyuan, hunyuan_inputs):
    kept = {}
    for checkpointing in (False, True):
        network = hunyuan(checkpointing=checkpointing)
        trainable(network)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(**hunyuan_inputs())
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 3


def test_autocast_and_plain_bf16_stay_close_to_float32(hunyuan, hunyuan_inputs):
    inputs = hunyuan_inputs()
    exact = hunyuan()(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = hunyuan()(**inputs)
        mixed_bf16 = hunyuan().bfloat16()(**inputs)
    plain_bf16 = hunyuan().bfloat16()(**inputs)
    for name, output in (("autocast", mixed), ("bf16 + autocast", mixed_bf16), ("bf16", plain_bf16)):
        assert output.dtype == torch.bfloat16, name
        assert (output.float() - exact).abs().max() < 0.02 * exact.abs().max() + 0.02, name


def test_guidance_is_heard_only_by_a_network_that_embeds_it(hunyuan, hunyuan_inputs):
    inputs = hunyuan_inputs()
    louder = {**inputs, "guidance": inputs["guidance"] * 3}
    distilled, plain = hunyuan(), hunyuan(guidance=False)
    assert not torch.allclose(distilled(**inputs), distilled(**louder), atol=1e-4)
    assert torch.equal(plain(**inputs), plain(**louder))


def test_a_preview_in_inference_mode_does_not_spoil_later_training(hunyuan, hunyuan_inputs):
    network, inputs = hunyuan(), hunyuan_inputs()
    with torch.inference_mode():
        network(**inputs)
    assert all(gradient is not None for gradient in gradients(network, inputs))


def test_only_a_few_position_tables_are_kept(hunyuan, hunyuan_inputs):
    network, inputs = hunyuan(double_blocks=1, single_blocks=1), hunyuan_inputs()
    for frames in range(1, ROPE_TABLES + 4):
        network(**{**inputs, "x": torch.zeros(2, 16, frames, 2, 2)})
    assert len(network._rope) == ROPE_TABLES


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 16, 3, 5, 10), "multiples of 16 pixels"), ((2, 32, 3, 6, 10), "16 input channels.* has 32")],
)
def test_an_input_that_does_not_fit_is_named(hunyuan, hunyuan_inputs, shape: tuple[int, ...], words: str):
    with pytest.raises(ConfigError, match=words):
        hunyuan()(**{**hunyuan_inputs(), "x": torch.zeros(shape)})


def test_unpatchify_undoes_cutting_into_patches():
    latent = torch.arange(2 * 3 * 2 * 4 * 6).view(2, 3, 2, 4, 6)  # (B, C, F, H, W)
    patches = latent.unfold(3, 2, 2).unfold(4, 2, 2)  # (B, C, F, h, w, 2, 2)
    tokens = patches.permute(0, 2, 3, 4, 1, 5, 6).reshape(2, 2 * 2 * 3, 3 * 4)
    assert torch.equal(unpatchify(tokens, (2, 2, 3)), latent)


def test_rotary_products_depend_only_on_the_distance():
    cos, sin = rope_table((4, 5, 6), (4, 14, 14), torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 120, -1, -1)
    turned_q, turned_k = (rotate(x, (cos, sin))[0, :, 0].view(4, 5, 6, 32) for x in (q, k))
    here = turned_q[0, 1, 2] @ turned_k[2, 2, 1]
    moved = turned_q[1, 3, 4] @ turned_k[3, 4, 3]
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(turned_q[0, 0, 0], q[0, 0, 0])


def test_text_tokens_are_not_rotated():
    rope = rope_table((1, 2, 2), (4, 14, 14), torch.device("cpu"))
    x = torch.randn(1, 7, 2, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, rope)[:, 4:], x[:, 4:])
