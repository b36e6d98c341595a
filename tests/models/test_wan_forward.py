"""Promises of the network's forward pass that need no oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wan_networks import KINDS, config_of, make_inputs, make_network, one_of

from musubi_core.errors import ConfigError
from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import ROPE_TABLES, Wan, unpatchify
from musubi_core.models.wan.rope import POSITIONS, axis_tables, rope_table, rotate

CLOSE = {"rtol": 0.0, "atol": 1e-5}
CPU = torch.device("cpu")


def trainable(network: Wan) -> list[nn.Parameter]:
    """A few weights of every kind of layer, set to need gradients."""
    names = ["blocks.0.self_attn.q.weight", "blocks.1.cross_attn.o.weight", "blocks.1.ffn.2.weight"]
    weights = [network.get_parameter(name) for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def gradients(network: Wan, inputs: dict[str, Any]) -> list[Tensor]:
    weights = trainable(network)
    network(**inputs).square().mean().backward()
    found = [weight.grad for weight in weights]
    network.zero_grad()
    return found


@pytest.mark.parametrize("task", KINDS)
def test_a_batch_of_two_equals_two_singles(task: str):
    network, inputs = make_network(task), make_inputs(task)
    singles = torch.cat([network(**one_of(inputs, index)) for index in range(2)])
    torch.testing.assert_close(network(**inputs), singles, **CLOSE)


def test_one_time_for_a_sample_equals_the_same_time_for_every_frame_and_token():
    network, inputs = make_network(), make_inputs()
    expected = network(**inputs)
    for count in (3, 3 * 4 * 6):
        spread = {**inputs, "t": inputs["t"][:, None].expand(-1, count)}
        torch.testing.assert_close(network(**spread), expected, **CLOSE)


def test_a_number_of_times_that_fits_nothing_is_refused():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="7 noise levels do not fit"):
        make_network()(**{**inputs, "t": torch.zeros(2, 7)})


def test_a_clean_first_frame_changes_what_the_others_become():
    network, inputs = make_network("ti2v-5B"), make_inputs("ti2v-5B")
    times = inputs["t"][:, None].repeat(1, 3)
    times[:, 0] = 0
    assert not torch.allclose(network(**inputs)[:, :, 1:], network(**{**inputs, "t": times})[:, :, 1:])


def test_every_row_of_text_is_looked_at_padding_too():
    network, inputs = make_network(), make_inputs()
    expected = network(**inputs)
    inputs["text"][0, -1] += 1
    changed = network(**inputs)
    assert not torch.allclose(changed[0], expected[0], atol=1e-5)
    assert torch.equal(changed[1], expected[1])


@pytest.mark.parametrize("half", [slice(0, 257), slice(257, 514)])
def test_both_pictures_of_first_and_last_frame_go_through_the_picture_branch(half: slice):
    network, inputs = make_network("flf2v-14B"), make_inputs("flf2v-14B")
    for weight in (network.blocks[0].cross_attn.v_img.weight, network.blocks[1].cross_attn.v_img.weight):
        weight.zero_()
    for bias in (network.blocks[0].cross_attn.v_img.bias, network.blocks[1].cross_attn.v_img.bias):
        bias.zero_()
    expected = network(**inputs)
    inputs["pictures"][:, half] += 1
    torch.testing.assert_close(network(**inputs), expected, **CLOSE)


def test_first_and_last_picture_are_told_apart():
    network, inputs = make_network("flf2v-14B"), make_inputs("flf2v-14B")
    turned = {**inputs, "pictures": inputs["pictures"].roll(257, dims=1)}
    assert not torch.allclose(network(**inputs), network(**turned), atol=1e-4)


def test_no_picture_means_features_of_zeros():
    network, inputs = make_network("t2v-14B-FC"), make_inputs("t2v-14B-FC")
    none = {name: value for name, value in inputs.items() if name != "pictures"}
    zeros = {**inputs, "pictures": torch.zeros(2, 257, 1280)}
    assert torch.equal(network(**none), network(**zeros))
    assert not torch.allclose(network(**none), network(**inputs), atol=1e-4)


def test_frames_stand_at_the_times_they_are_given():
    network, inputs = make_network(), make_inputs()
    expected = network(**inputs)
    usual = torch.tensor([[0, 1, 2]]).expand(2, -1)
    torch.testing.assert_close(network(**inputs, frame_positions=usual), expected, **CLOSE)
    moved = network(**inputs, frame_positions=usual + 5)
    torch.testing.assert_close(moved, expected, **CLOSE, msg="only distances count")
    apart = network(**inputs, frame_positions=torch.tensor([[0, 1, 2], [0, 1, 9]]))
    torch.testing.assert_close(apart[0], expected[0], **CLOSE)
    assert not torch.allclose(apart[1], expected[1], atol=1e-4)


def test_split_attention_equals_joint_attention():
    inputs = make_inputs("i2v-14B")
    joint, split = (make_network("i2v-14B", split_attention=split) for split in (False, True))
    torch.testing.assert_close(joint(**inputs), split(**inputs), **CLOSE)
    for one, other in zip(gradients(joint, inputs), gradients(split, inputs), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("task", ["t2v-14B", "flf2v-14B"])
def test_checkpointing_changes_no_bit_of_output_or_gradient(task: str):
    inputs = make_inputs(task)
    plain, saving = make_network(task), make_network(task, checkpointing=True)
    assert torch.equal(plain(**inputs), saving(**inputs))
    for one, other in zip(gradients(plain, inputs), gradients(saving, inputs), strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one, other)


def test_checkpointing_redraws_the_same_dropout():
    found = []
    for checkpointing in (False, True):
        network = make_network(checkpointing=checkpointing)
        weights = trainable(network)
        for block in network.blocks:
            block.ffn[0] = nn.Sequential(block.ffn[0], nn.Dropout(0.5))
        torch.manual_seed(11)
        network.train()(**make_inputs()).square().mean().backward()
        found.append([weight.grad for weight in weights])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_autocast_and_plain_bf16_stay_close_to_float32():
    inputs = make_inputs("i2v-14B")
    exact = make_network("i2v-14B")(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make_network("i2v-14B")(**inputs)
        mixed_bf16 = make_network("i2v-14B").bfloat16()(**inputs)
    plain_bf16 = make_network("i2v-14B").bfloat16()(**inputs)
    for name, output in (("autocast", mixed), ("bf16 + autocast", mixed_bf16), ("bf16", plain_bf16)):
        assert output.dtype == torch.float32, name
        assert (output - exact).abs().max() < 0.02 * exact.abs().max() + 0.02, name


@pytest.mark.parametrize("autocast", [False, True])
def test_time_head_and_norms_are_float32_whatever_the_run_is(autocast: bool):
    """Weights that bf16 holds exactly: then nothing before the first block may differ from float32."""
    network, exact = make_network().bfloat16(), make_network().bfloat16().float()
    t = torch.tensor([[300.0, 773.5]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for one, other in zip(network._time(t), exact._time(t), strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
        tokens = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(0))
        level = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
        assert torch.equal(network.head(tokens, level), exact.head(tokens, level))
        for norm in ("norm3", "cross_attn.norm_q"):
            one, other = (each.blocks[0].get_submodule(norm)(tokens) for each in (network, exact))
            torch.testing.assert_close(one, other, **CLOSE)


def test_a_preview_in_inference_mode_does_not_spoil_later_training():
    network, inputs = make_network(), make_inputs()
    with torch.inference_mode():
        network(**inputs)
    assert all(gradient is not None for gradient in gradients(network, inputs))


def test_only_a_few_position_tables_are_kept():
    network, inputs = make_network(layers=1), make_inputs()
    for frames in range(1, ROPE_TABLES + 4):
        network(**{**inputs, "x": torch.zeros(2, 16, frames, 2, 2)})
    assert len(network._rope) == ROPE_TABLES


@pytest.mark.gpu
def test_a_forward_pass_never_makes_the_card_wait():
    device = torch.device("cuda")
    network = make_network("flf2v-14B").to(device)
    inputs = {name: value.to(device) for name, value in make_inputs("flf2v-14B").items()}
    inputs["frame_positions"] = torch.tensor([[0, 2, 5]], device=device).expand(2, -1)
    network(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.zeros(2, 16, 3, 5, 12)}, "cannot be cut into 2x2 patches"),
        ({"x": torch.zeros(2, 20, 3, 8, 12)}, "16 input channels.* has 20"),
        ({"beside": torch.zeros(2, 20, 3, 8, 12)}, "16 input channels.* has 36"),
        ({"x": torch.zeros(1, 16, 1, 2, 2 * POSITIONS + 2)}, "larger than the 1024 positions"),
    ],
    ids=["odd", "channels", "beside", "large"],
)
def test_an_input_that_does_not_fit_is_named(changes: dict[str, Tensor], words: str):
    with pytest.raises(ConfigError, match=words):
        make_network()(**{**make_inputs(), **changes})


@pytest.mark.parametrize(
    ("task", "shape"), [("i2v-14B", (2, 257, 640)), ("flf2v-14B", (2, 771, 1280))], ids=str
)
def test_picture_features_that_do_not_fit_are_named(task: str, shape: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"picture features of width 1280.*Cache the latents again"):
        make_network(task)(**{**make_inputs(task), "pictures": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "128 does not divide into 3 heads"),
        ({"heads": 32}, "4 wide"),
        ({"picture_tokens": 10}, "no branch"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        config_of("t2v-14B", **change)


def test_unpatchify_undoes_cutting_into_patches():
    latent = torch.arange(2 * 3 * 2 * 4 * 6).view(2, 3, 2, 4, 6)  # (B, C, F, H, W)
    patches = latent.unfold(3, 2, 2).unfold(4, 2, 2)  # (B, C, F, h, w, 2, 2)
    tokens = patches.permute(0, 2, 3, 4, 5, 6, 1).reshape(2, 2 * 2 * 3, 4 * 3)
    assert torch.equal(unpatchify(tokens, (2, 2, 3)), latent)


def test_rotary_products_depend_only_on_the_distance():
    rope = rope_table(axis_tables((12, 10, 10), CPU), (4, 5, 6))
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 120, -1, -1)
    turned_q, turned_k = (rotate(x, rope)[0, :, 0].view(4, 5, 6, 32) for x in (q, k))
    here = turned_q[0, 1, 2] @ turned_k[2, 2, 1]
    moved = turned_q[1, 3, 4] @ turned_k[3, 4, 3]
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(turned_q[0, 0, 0], q[0, 0, 0])


def test_the_default_sizes_are_those_of_the_released_network():
    config = WanConfig()
    assert (config.head_size, config.layout.in_channels, config.layout.pictures) == (128, 16, False)
