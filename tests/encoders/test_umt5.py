"""UMT5's encoder gives what transformers' whole model gives, from every layout of its files."""

from __future__ import annotations

import pytest
import torch
from text_encoder_files import ROWS, make_t5, randomize, save

from musubi_core.encoders.umt5 import open_umt5, read_umt5_sizes, umt5_states
from musubi_core.errors import BadFileError

CPU = torch.device("cpu")
LENGTHS = (9, 150)
OFFICIAL = (
    ("encoder.block.", "blocks."),
    (".layer.0.SelfAttention.relative_attention_bias.", ".pos_embedding.embedding."),
    (".layer.0.SelfAttention.", ".attn."),
    (".layer.0.layer_norm.", ".norm1."),
    (".layer.1.layer_norm.", ".norm2."),
    (".layer.1.DenseReluDense.wi_0.", ".ffn.gate.0."),
    (".layer.1.DenseReluDense.wi_1.", ".ffn.fc1."),
    (".layer.1.DenseReluDense.wo.", ".ffn.fc2."),
    ("encoder.final_layer_norm.", "norm."),
    ("shared.", "token_embedding."),
)


@pytest.fixture(scope="module")
def whole():
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=ROWS,
        d_model=48,
        d_kv=16,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
    )
    return randomize(UMT5EncoderModel(config))


@pytest.fixture(scope="module")
def tokens():
    """ids and mask (2, 160): captions of two lengths, padded with 0."""
    ids = torch.randint(3, ROWS, (2, 160), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(160) < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask


@pytest.fixture(scope="module")
def expected(whole, tokens):
    with torch.no_grad():
        states = whole(input_ids=tokens[0], attention_mask=tokens[1]).last_hidden_state
    return [state[:length] for state, length in zip(states, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def state(whole):
    kept = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    kept.pop("encoder.embed_tokens.weight", None)
    return kept


def official(state):
    renamed = {}
    for name, tensor in state.items():
        for old, new in OFFICIAL:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def comfyui(state):
    return {**state, "spiece_model": torch.zeros(10, dtype=torch.uint8)}


def states_of(path, tokens, **options):
    return umt5_states(open_umt5(path, device=CPU, dtype=torch.float32, **options), *tokens)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", [dict, comfyui, official])
def test_a_single_file_gives_the_states_of_the_whole_model(tmp_path, state, tokens, expected, layout):
    assert_same(states_of(save(tmp_path / "umt5.safetensors", layout(state)), tokens), expected)


def test_the_official_torch_file_gives_the_same(tmp_path, state, tokens, expected):
    path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(official(state), path)
    assert_same(states_of(path, tokens), expected)


def test_a_hugging_face_folder_gives_the_same(tmp_path, whole, tokens, expected):
    whole.save_pretrained(tmp_path)
    assert_same(states_of(tmp_path, tokens), expected)


def test_the_official_table_names_every_weight_and_no_other(tmp_path, state):
    renamed = official(state)
    assert not [name for name in renamed if "encoder" in name or "layer." in name]
    cut = {name: tensor for name, tensor in renamed.items() if name != "blocks.2.ffn.gate.0.weight"}
    with pytest.raises(BadFileError, match=r"lacks 1 \(block\.2\.layer\.1\.DenseReluDense\.wi_0\.weight\)"):
        open_umt5(save(tmp_path / "t5.safetensors", cut), device=CPU, dtype=torch.float32)


def test_a_batch_equals_single_captions_without_padding(tmp_path, state, tokens, expected):
    model = open_umt5(save(tmp_path / "t5.safetensors", state), device=CPU, dtype=torch.float32)
    for number, length in enumerate(LENGTHS):
        alone = [part[number : number + 1, :length] for part in tokens]
        assert_same(umt5_states(model, *alone), expected[number : number + 1])


def test_fp8_rounds_linear_weights_only_and_stays_close(tmp_path, state, tokens, expected):
    path = save(tmp_path / "t5.safetensors", state)
    model = open_umt5(path, device=CPU, dtype=torch.float32, fp8=True)
    small = {name for name, parameter in model.named_parameters() if parameter.element_size() == 1}
    assert len(small) == 3 * 7 and not [name for name in small if "bias" in name or "norm" in name]
    for one, other in zip(umt5_states(model, *tokens), expected, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 0.1


def test_a_scaled_fp8_file_equals_the_rounded_weights(tmp_path, state, tokens):
    small, plain = {}, {}
    for name, tensor in state.items():
        small[name] = plain[name] = tensor
        if tensor.ndim == 2 and "SelfAttention" in name and "bias" not in name:
            scale = tensor.abs().max() / 448
            small[name] = (tensor / scale).to(torch.float8_e4m3fn)
            small[f"{name.removesuffix('weight')}scale_weight"] = scale
            plain[name] = small[name].float() * scale
    small["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    from_scaled = states_of(save(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", small), tokens)
    from_rounded = states_of(save(tmp_path / "rounded.safetensors", plain), tokens)
    assert all(torch.equal(one, other) for one, other in zip(from_scaled, from_rounded, strict=True))


def test_sizes_come_from_the_shapes(tmp_path, state):
    sizes = read_umt5_sizes(save(tmp_path / "umt5.safetensors", official(state)))
    assert (sizes.rows, sizes.hidden, sizes.mlp, sizes.layers) == (ROWS, 48, 96, 3)
    assert (sizes.heads, sizes.head, sizes.buckets, sizes.distance) == (4, 16, 32, 128)


def test_the_t5_of_flux_is_told_apart(tmp_path):
    state = {name: tensor.clone() for name, tensor in make_t5().state_dict().items()}
    with pytest.raises(
        BadFileError, match=r"t5xxl_fp16\.safetensors is a T5 whose position bias is in its first"
    ):
        read_umt5_sizes(save(tmp_path / "t5xxl_fp16.safetensors", state))


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "clip_l.safetensors", {"text_model.final_layer_norm.weight": torch.ones(2)})
    with pytest.raises(BadFileError, match=r"clip_l\.safetensors is not a UMT5 .*Expected umt5_xxl_fp16"):
        read_umt5_sizes(path)
