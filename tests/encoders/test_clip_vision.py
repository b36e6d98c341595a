"""CLIP's image model gives what the whole model has one layer before its end, from every layout."""

from __future__ import annotations

import pytest
import torch
from text_encoder_files import randomize, save

from musubi_core.encoders.clip_vision import open_clip_vision, picture_states, read_clip_vision_sizes
from musubi_core.encoders.tiny_clip_vision import tiny_clip_vision
from musubi_core.errors import BadFileError

CPU = torch.device("cpu")
OPEN_CLIP = (
    ("embeddings.patch_embedding.", "patch_embedding."),
    ("embeddings.position_embedding.weight", "pos_embedding"),
    ("embeddings.class_embedding", "cls_embedding"),
    ("pre_layrnorm.", "pre_norm."),
    ("post_layernorm.", "post_norm."),
    ("encoder.layers.", "transformer."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.2."),
)


@pytest.fixture(scope="module")
def whole():
    """Two heads of 80, pictures of 28 x 28 in patches of 14."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    return randomize(CLIPVisionModel(config))


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(whole, pictures):
    with torch.no_grad():
        return whole(pixel_values=pictures, output_hidden_states=True).hidden_states[-2]


@pytest.fixture(scope="module")
def state(whole):
    """Without any prefix."""
    return {
        name.removeprefix("vision_model."): tensor.clone()
        for name, tensor in whole.state_dict().items()
        if not name.endswith("position_ids")
    }


def comfyui(state):
    projection = {"visual_projection.weight": torch.zeros(4, 160)}
    return {**{f"vision_model.{name}": tensor for name, tensor in state.items()}, **projection}


def open_clip(state):
    """Wan-AI's file: query, key and value in one, a text model beside it."""
    found = {"textual.transformer.0.norm1.weight": torch.ones(2), "log_scale": torch.ones(())}
    for name, tensor in state.items():
        short = name
        for old, new in OPEN_CLIP:
            short = short.replace(old, new)
        if ".self_attn.q_proj." in short:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found["visual." + short.replace("self_attn.q_proj", "attn.to_qkv")] = torch.cat(parts)
        elif "_proj." not in short:
            extra = {"cls_embedding": (1, 1, -1), "pos_embedding": (1, *tensor.shape)}.get(short)
            found[f"visual.{short}"] = tensor if extra is None else tensor.reshape(extra)
    return {**found, "visual.head": torch.zeros(160, 4)}


@pytest.mark.parametrize("layout", [dict, comfyui, open_clip])
def test_every_layout_gives_the_states_before_the_last_layer(tmp_path, state, pictures, expected, layout):
    path = save(tmp_path / "clip_vision_h.safetensors", layout(state))
    states = picture_states(open_clip_vision(path, device=CPU, dtype=torch.float32), pictures)
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def test_the_official_torch_file_gives_the_same(tmp_path, state, pictures, expected):
    path = tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    torch.save(open_clip(state), path)
    states = picture_states(open_clip_vision(path, device=CPU, dtype=torch.float32), pictures)
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def test_a_hugging_face_folder_gives_the_same(tmp_path, whole, pictures, expected):
    whole.save_pretrained(tmp_path)
    states = picture_states(open_clip_vision(tmp_path, device=CPU, dtype=torch.float32), pictures)
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-6)


def test_the_last_layer_is_not_loaded(tmp_path, state):
    path = save(tmp_path / "clip.safetensors", state)
    model = open_clip_vision(path, device=CPU, dtype=torch.float32)
    assert not [name for name, _ in model.named_parameters() if "layers.2." in name]


def test_sizes_come_from_the_shapes(tmp_path, state):
    for layout in (comfyui, open_clip):
        sizes = read_clip_vision_sizes(save(tmp_path / "clip.safetensors", layout(state)))
        assert (sizes.image, sizes.patch, sizes.hidden, sizes.mlp) == (28, 14, 160, 192)
        assert (sizes.layers, sizes.heads) == (3, 2)


def test_the_tiny_one_is_whole_and_looks_at_pictures_of_224(tmp_path):
    path = save(tmp_path / "tiny.safetensors", tiny_clip_vision(torch.Generator().manual_seed(0)))
    sizes = read_clip_vision_sizes(path)
    model = open_clip_vision(path, device=CPU, dtype=torch.float32)
    assert picture_states(model, torch.zeros(1, 3, sizes.image, sizes.image)).shape == (1, 257, sizes.hidden)


def test_the_image_model_of_another_clip_is_refused(tmp_path, state):
    other = {**state, "embeddings.patch_embedding.weight": torch.zeros(1024, 3, 14, 14)}
    with pytest.raises(
        BadFileError, match=r"of width 1024; ViT-H's is a multiple of 80.*Expected clip_vision_h"
    ):
        read_clip_vision_sizes(save(tmp_path / "clip_l.safetensors", other))


def test_a_text_encoder_is_refused_by_name(tmp_path):
    path = save(tmp_path / "clip_l.safetensors", {"text_model.final_layer_norm.weight": torch.ones(2)})
    with pytest.raises(
        BadFileError, match=r"clip_l\.safetensors is not a CLIP image encoder.*Expected clip_v"
    ):
        read_clip_vision_sizes(path)


def test_a_missing_tensor_is_named(tmp_path, state):
    cut = {name: tensor for name, tensor in state.items() if name != "encoder.layers.1.mlp.fc2.bias"}
    with pytest.raises(BadFileError, match=r"lacks 1 \(.*encoder\.layers\.1\.mlp\.fc2\.bias\)"):
        open_clip_vision(save(tmp_path / "clip.safetensors", cut), device=CPU, dtype=torch.float32)
