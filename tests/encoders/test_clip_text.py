"""CLIP's pooled captions equal transformers' own, from every layout of the files."""

from __future__ import annotations

import pytest
import torch
from text_encoder_files import ROWS, bare_state, make_clip, save

from musubi_core.encoders.clip_text import open_clip_text, pooled, read_clip_sizes
from musubi_core.errors import BadFileError

CPU = torch.device("cpu")
END = ROWS - 1


@pytest.fixture(scope="module")
def whole():
    return make_clip()


@pytest.fixture(scope="module")
def ids():
    """(2, 77): begin, words, end, then more ends as CLIP pads."""
    rows = torch.randint(3, ROWS - 2, (2, 77), generator=torch.Generator().manual_seed(1))
    rows[:, 0] = ROWS - 2
    rows[0, 9:], rows[1, 30:] = END, END
    return rows


@pytest.fixture(scope="module")
def expected(whole, ids):
    with torch.no_grad():
        return whole(input_ids=ids).pooler_output


LAYOUTS = {
    "bare": "",
    "ComfyUI": "text_model.",
    "whole checkpoint": "cond_stage_model.transformer.text_model.",
}


@pytest.mark.parametrize("prefix", LAYOUTS.values(), ids=LAYOUTS)
def test_a_single_file_gives_the_pooled_output(tmp_path, whole, ids, expected, prefix):
    tensors = {prefix + name: tensor for name, tensor in bare_state(whole).items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    tensors["text_projection.weight"] = torch.zeros(4, 4)
    tensors["logit_scale"] = torch.zeros(())
    path = save(tmp_path / "clip_l.safetensors", tensors)
    model = open_clip_text(path, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(pooled(model, ids), expected, rtol=0, atol=1e-6)


def test_a_hugging_face_folder_gives_the_same(tmp_path, whole, ids, expected):
    whole.save_pretrained(tmp_path)
    model = open_clip_text(tmp_path, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(pooled(model, ids), expected, rtol=0, atol=1e-6)


def test_what_follows_the_end_token_does_not_matter(tmp_path, whole, ids, expected):
    path = save(tmp_path / "clip_l.safetensors", bare_state(whole))
    model = open_clip_text(path, device=CPU, dtype=torch.float32)
    zeros = ids.clone()
    zeros[0, 10:] = 0
    torch.testing.assert_close(pooled(model, zeros), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled(model, ids[1:]), expected[1:], rtol=0, atol=1e-6)


def test_heads_are_64_wide_where_no_config_says(tmp_path, whole):
    sizes = read_clip_sizes(save(tmp_path / "clip_l.safetensors", bare_state(whole)))
    assert (sizes.heads, sizes.positions, sizes.activation, sizes.layers) == (2, 77, "quick_gelu", 2)


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "t5.safetensors", {"shared.weight": torch.zeros(2)})
    with pytest.raises(BadFileError, match=r"t5\.safetensors is not a CLIP .*shared\.weight"):
        read_clip_sizes(path)


def test_a_missing_tensor_is_named(tmp_path, whole):
    tensors = bare_state(whole)
    del tensors["final_layer_norm.bias"]
    path = save(tmp_path / "clip_l.safetensors", tensors)
    with pytest.raises(BadFileError, match=r"lacks 1 \((text_model\.)?final_layer_norm\.bias\)"):
        open_clip_text(path, device=CPU, dtype=torch.float32)
