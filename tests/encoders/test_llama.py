"""LLaMA without its last layers equals transformers' whole model, from every layout of its files."""

from __future__ import annotations

import json

import pytest
import torch
from text_encoder_files import HIDDEN, LAYERS, ROWS, bare_state, make_llama, save

from musubi_core.encoders.llama import hidden_states, open_llama, read_llama_sizes
from musubi_core.errors import BadFileError
from musubi_core.quantization.fp8_linear import FP8

CPU = torch.device("cpu")
LENGTHS = (9, 5)


@pytest.fixture(scope="module")
def whole():
    return make_llama()


@pytest.fixture(scope="module")
def tokens():
    """ids, mask: (2, 12), two captions of different length, padded on the right."""
    ids = torch.randint(0, ROWS, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 12, dtype=torch.int64)
    for row, length in zip(mask, LENGTHS, strict=True):
        row[:length] = 1
    return ids, mask


@pytest.fixture(scope="module")
def expected(whole, tokens):
    """hidden_states[-3] of the whole model, computed by transformers from all layers."""
    ids, mask = tokens
    with torch.no_grad():
        return whole(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-3]


def states_of(path, tokens, **options):
    return hidden_states(open_llama(path, device=CPU, dtype=torch.float32, **options), *tokens)


def assert_same_where_valid(states, expected):
    for row, wanted, length in zip(states, expected, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length], wanted[:length], rtol=0, atol=2e-6)


LAYOUTS = {
    "bare": "",
    "causal language model": "model.",
    "LLaVA": "language_model.model.",
    "newer LLaVA": "model.language_model.",
}


@pytest.mark.parametrize("prefix", LAYOUTS.values(), ids=LAYOUTS)
def test_a_single_file_gives_the_states_of_the_whole_model(tmp_path, whole, tokens, expected, prefix):
    tensors = {prefix + name: tensor for name, tensor in bare_state(whole).items()}
    tensors["lm_head.weight"] = torch.zeros(ROWS, HIDDEN)
    tensors["vision_tower.vision_model.embeddings.class_embedding"] = torch.zeros(8)
    tensors[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(64)
    tensors["tokenizer"] = torch.zeros(5, dtype=torch.uint8)
    path = save(tmp_path / "llava.safetensors", tensors)
    assert_same_where_valid(states_of(path, tokens), expected)


def test_a_hugging_face_folder_in_shards_gives_the_same(tmp_path, whole, tokens, expected):
    whole.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_where_valid(states_of(tmp_path, tokens), expected)


def test_numbers_that_shapes_cannot_tell_come_from_the_folders_config(tmp_path, whole):
    save(tmp_path / "model.safetensors", bare_state(whole))
    text = {"rope_theta": 1000.0, "rms_norm_eps": 1e-3, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    sizes = read_llama_sizes(tmp_path)
    assert (sizes.theta, sizes.eps, sizes.head, sizes.heads, sizes.kv_heads) == (1000.0, 1e-3, 64, 4, 2)


def test_a_single_file_has_the_numbers_of_llama_3(tmp_path, whole):
    sizes = read_llama_sizes(save(tmp_path / "llama.safetensors", bare_state(whole)))
    assert (sizes.theta, sizes.eps, sizes.head, sizes.heads, sizes.kv_heads) == (500000.0, 1e-5, 128, 2, 1)
    assert (sizes.rows, sizes.hidden, sizes.layers) == (ROWS, HIDDEN, LAYERS)


def test_the_last_layers_and_the_final_norm_are_not_loaded(tmp_path, whole, tokens, expected):
    kept = {
        name: tensor
        for name, tensor in bare_state(whole).items()
        if not name.startswith(("layers.2.self_attn", "layers.3.mlp", "norm."))
    }
    model = open_llama(save(tmp_path / "cut.safetensors", kept), device=CPU, dtype=torch.float32)
    assert len(model.layers) == LAYERS - 2
    assert_same_where_valid(hidden_states(model, *tokens), expected)


def test_a_batch_equals_single_captions_and_padding_does_not_matter(tmp_path, whole, tokens):
    path = save(tmp_path / "llama.safetensors", bare_state(whole))
    model = open_llama(path, device=CPU, dtype=torch.float32)
    ids, mask = tokens
    batch = hidden_states(model, ids, mask)
    for index, length in enumerate(LENGTHS):
        alone = hidden_states(model, ids[index : index + 1, :length], mask[index : index + 1, :length])
        torch.testing.assert_close(batch[index, :length], alone[0], rtol=0, atol=2e-6)
    other = torch.where(mask == 1, ids, 3)
    assert_same_where_valid(hidden_states(model, other, mask), batch)


def test_loading_draws_no_random_numbers_and_keeps_rotary_frequencies_precise(tmp_path, whole):
    path = save(tmp_path / "llama.safetensors", bare_state(whole))
    before = torch.random.get_rng_state()
    model = open_llama(path, device=CPU, dtype=torch.float16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.embed_tokens.weight.dtype == torch.float16
    assert model.rotary_emb.inv_freq.dtype == torch.float32


def test_fp8_keeps_embedding_and_norms_and_stays_near(tmp_path, whole, tokens, expected):
    path = save(tmp_path / "llama.safetensors", bare_state(whole))
    model = open_llama(path, device=CPU, dtype=torch.float32, fp8=True)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if name.endswith("_proj.weight")} == {FP8}
    assert {dtype for name, dtype in dtypes.items() if not name.endswith("_proj.weight")} == {torch.float32}
    states = hidden_states(model, *tokens)
    assert states.dtype == torch.float32
    error = (states[0, : LENGTHS[0]] - expected[0, : LENGTHS[0]]).norm() / expected[0, : LENGTHS[0]].norm()
    assert 0 < error < 0.1


def test_a_scaled_fp8_file_equals_the_rounded_weights(tmp_path, whole, tokens):
    rounded, scaled = {}, {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, tensor in bare_state(whole).items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().max() / 448
            scaled[f"model.{name}"] = (tensor / scale).to(FP8)
            scaled[f"model.{name.removesuffix('.weight')}.scale_weight"] = scale
            rounded[name] = (tensor / scale).to(FP8).float() * scale
        else:
            scaled[f"model.{name}"] = rounded[name] = tensor
    from_scaled = states_of(save(tmp_path / "fp8_scaled.safetensors", scaled), tokens)
    from_rounded = states_of(save(tmp_path / "rounded.safetensors", rounded), tokens)
    torch.testing.assert_close(from_scaled, from_rounded, rtol=0, atol=0)


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "vae.safetensors", {"encoder.conv_in.weight": torch.zeros(2)})
    with pytest.raises(BadFileError, match=r"vae\.safetensors is not a LLaMA .*encoder\.conv_in"):
        read_llama_sizes(path)


def test_a_missing_tensor_is_named(tmp_path, whole):
    tensors = bare_state(whole)
    del tensors["layers.1.mlp.down_proj.weight"]
    path = save(tmp_path / "cut.safetensors", tensors)
    with pytest.raises(BadFileError, match=r"lacks 1 \(layers\.1\.mlp\.down_proj\.weight\)"):
        open_llama(path, device=CPU, dtype=torch.float32)


def test_a_model_with_biases_is_not_taken_for_llama(tmp_path, whole):
    tensors = bare_state(whole) | {"layers.0.self_attn.q_proj.bias": torch.zeros(HIDDEN)}
    path = save(tmp_path / "qwen.safetensors", tensors)
    with pytest.raises(BadFileError, match=r"unknown 1 \(layers\.0\.self_attn\.q_proj\.bias\)"):
        open_llama(path, device=CPU, dtype=torch.float32)


def test_a_folder_without_config_is_refused(tmp_path, whole):
    save(tmp_path / "model.safetensors", bare_state(whole))
    with pytest.raises(BadFileError, match=r"no config\.json"):
        read_llama_sizes(tmp_path)


def test_scaled_rotary_positions_are_refused(tmp_path, whole):
    save(tmp_path / "model.safetensors", bare_state(whole))
    (tmp_path / "config.json").write_text(
        json.dumps({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    )
    with pytest.raises(BadFileError, match="rotary positions of type 'llama3'"):
        read_llama_sizes(tmp_path)
