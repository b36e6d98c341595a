"""T5's encoder gives what transformers' whole model gives, from every layout of its files."""

from __future__ import annotations

import json

import pytest
import torch
from text_encoder_files import ROWS, make_t5, save

from musubi_core.encoders.t5 import open_t5, read_t5_sizes, t5_states
from musubi_core.errors import BadFileError
from musubi_core.quantization.fp8_linear import FP8

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole():
    return make_t5()


@pytest.fixture(scope="module")
def ids():
    """(2, 150): two captions, padded with 0; longer than the farthest distance that T5 tells apart."""
    rows = torch.randint(3, ROWS, (2, 150), generator=torch.Generator().manual_seed(1))
    rows[0, 9], rows[0, 10:] = 1, 0
    return rows


@pytest.fixture(scope="module")
def expected(whole, ids):
    """The states when no mask is given: padding takes part."""
    with torch.no_grad():
        return whole(input_ids=ids).last_hidden_state


@pytest.fixture(scope="module")
def state(whole):
    """Names of a published file, the embedding once."""
    kept = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    kept.pop("encoder.embed_tokens.weight", None)
    return kept


def states_of(path, ids, **options):
    return t5_states(open_t5(path, device=CPU, dtype=torch.float32, **options), ids)


def assert_same(states, expected):
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def in_encoder(state):
    """The embedding under its second name only."""
    renamed = dict(state)
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    return renamed


def in_both(state):
    return {**state, "encoder.embed_tokens.weight": state["shared.weight"].clone()}


def whole_t5(state):
    """With a decoder and a head, as google/t5-v1_1-xxl is published."""
    query = "block.0.layer.0.SelfAttention.q.weight"
    extra = {f"decoder.{query}": torch.zeros(4, 4), "decoder.embed_tokens.weight": torch.zeros(4, 4)}
    return {**state, **extra, "lm_head.weight": torch.zeros(4, 4)}


def all_in_one(state):
    """As in a checkpoint that holds everything."""
    other = {"text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": torch.ones(4)}
    return {**{f"text_encoders.t5xxl.transformer.{name}": t for name, t in state.items()}, **other}


@pytest.mark.parametrize("layout", [dict, in_encoder, in_both, whole_t5, all_in_one])
def test_a_single_file_gives_the_states_of_the_whole_model(tmp_path, state, ids, expected, layout):
    path = save(tmp_path / "t5xxl_fp16.safetensors", layout(state))
    assert_same(states_of(path, ids), expected)


def test_a_hugging_face_folder_in_shards_gives_the_same(tmp_path, whole, ids, expected):
    whole.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(states_of(tmp_path, ids), expected)


def test_padding_takes_part(tmp_path, state, ids):
    path = save(tmp_path / "t5.safetensors", state)
    model = open_t5(path, device=CPU, dtype=torch.float32)
    short = t5_states(model, ids[:1, :10])
    assert not torch.allclose(t5_states(model, ids[:1])[:, :10], short, atol=1e-4)


def test_a_batch_equals_single_captions(tmp_path, state, ids, expected):
    model = open_t5(save(tmp_path / "t5.safetensors", state), device=CPU, dtype=torch.float32)
    assert_same(t5_states(model, ids[1:]), expected[1:])


def test_the_embedding_is_in_memory_once(tmp_path, state):
    model = open_t5(save(tmp_path / "t5.safetensors", in_both(state)), device=CPU, dtype=torch.float32)
    tables = [p for p in model.parameters() if p.shape == state["shared.weight"].shape]
    assert len(tables) == 1


def test_sizes_come_from_the_shapes(tmp_path, state):
    sizes = read_t5_sizes(save(tmp_path / "t5.safetensors", state))
    assert (sizes.rows, sizes.hidden, sizes.mlp, sizes.layers) == (ROWS, 48, 96, 3)
    assert (sizes.heads, sizes.head, sizes.buckets) == (4, 16, 32)
    assert (sizes.distance, sizes.eps) == (128, 1e-6)


def test_numbers_that_shapes_cannot_tell_come_from_the_folders_config(tmp_path, state):
    save(tmp_path / "model.safetensors", state)
    numbers = {"relative_attention_max_distance": 64, "layer_norm_epsilon": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    sizes = read_t5_sizes(tmp_path)
    assert (sizes.distance, sizes.eps) == (64, 1e-3)


def rounded(state, scale_of):
    """(fp8 file, the numbers it stands for): linear weights in 8 bits, divided by scale_of(weight)."""
    small, plain = {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.startswith("encoder.block.") and "bias" not in name:
            scale = scale_of(tensor)
            small[name] = (tensor / scale).to(FP8)
            small[f"{name.removesuffix('.weight')}.scale_weight"] = scale
            plain[name] = small[name].float() * scale
        else:
            small[name] = plain[name] = tensor
    return small, plain


def test_a_scaled_fp8_file_equals_the_rounded_weights(tmp_path, state, ids):
    small, plain = rounded(state, lambda weight: weight.abs().max() / 448)
    small["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    small["encoder.block.0.layer.0.SelfAttention.q.scale_input"] = torch.ones(())
    from_scaled = states_of(save(tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors", small), ids)
    from_rounded = states_of(save(tmp_path / "rounded.safetensors", plain), ids)
    assert torch.equal(from_scaled, from_rounded)


def test_a_plain_fp8_file_is_cast_up(tmp_path, state, ids):
    small, plain = rounded(state, lambda weight: torch.ones(()))
    small = {name: tensor for name, tensor in small.items() if not name.endswith("scale_weight")}
    from_small = states_of(save(tmp_path / "t5xxl_fp8_e4m3fn.safetensors", small), ids)
    from_rounded = states_of(save(tmp_path / "rounded.safetensors", plain), ids)
    assert torch.equal(from_small, from_rounded)


def test_fp8_keeps_embedding_norms_and_bias_and_calculates_precisely(tmp_path, state, ids):
    path = save(tmp_path / "t5.safetensors", state)
    model = open_t5(path, device=CPU, dtype=torch.float32, fp8=True)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    small = {name for name, dtype in dtypes.items() if dtype == FP8}
    assert len(small) == 3 * 7
    assert all(".SelfAttention." in name or ".DenseReluDense." in name for name in small)
    assert not [name for name in small if "bias" in name or "norm" in name]
    # Only the weights are rounded: what passes through the layers never is.
    _, plain = rounded(state, lambda weight: torch.ones(()))
    assert_same(t5_states(model, ids), states_of(save(tmp_path / "rounded.safetensors", plain), ids))


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "clip_l.safetensors", {"text_model.final_layer_norm.weight": torch.ones(2)})
    with pytest.raises(BadFileError, match=r"clip_l\.safetensors is not a T5 .*Expected t5xxl_fp16"):
        read_t5_sizes(path)


def test_the_first_t5_without_gates_is_refused(tmp_path):
    state = {name: tensor.clone() for name, tensor in make_t5("relu").state_dict().items()}
    with pytest.raises(BadFileError, match=r"not an encoder of T5 v1\.1: it lacks .*wi_0"):
        read_t5_sizes(save(tmp_path / "t5.safetensors", state))


def test_a_model_with_a_bias_in_every_block_is_not_taken_for_t5(tmp_path, state):
    bias = "relative_attention_bias.weight"
    more = {f"encoder.block.{n}.layer.0.SelfAttention.{bias}": torch.zeros(32, 4) for n in (1, 2)}
    path = save(tmp_path / "umt5.safetensors", {**state, **more})
    with pytest.raises(BadFileError, match=r"has unknown 2 \(block\.1\.layer\.0\.SelfAttention\.relative"):
        open_t5(path, device=CPU, dtype=torch.float32)


def test_a_missing_tensor_is_named(tmp_path, state):
    cut = {name: tensor for name, tensor in state.items() if name != "encoder.final_layer_norm.weight"}
    with pytest.raises(BadFileError, match=r"lacks 1 \(final_layer_norm\.weight\)"):
        open_t5(save(tmp_path / "t5.safetensors", cut), device=CPU, dtype=torch.float32)
