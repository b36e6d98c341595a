"""Telling HunyuanVideo networks from each other and from every file that users mistake for one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.detect import PREFIXES, detect, refuse
from musubi_core.models.hunyuan_video.keys import LORA_NAMES, comfyui_name, stored_names
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.registry import architecture
from musubi_core.models.spec import Header


def header_of(
    config: HunyuanVideoConfig, naming: str = "original", prefix: str = ""
) -> dict[str, TensorInfo]:
    with torch.device("meta"):
        state = HunyuanVideo(config).state_dict()
    stored = stored_names(state, naming=naming, prefix=prefix)
    return {stored[name]: info(*tensor.shape) for name, tensor in state.items()}


def info(*shape: int) -> TensorInfo:
    return TensorInfo(shape=shape, dtype="bfloat16")


def header(*names: str) -> Header:
    return {name: info(4, 4) for name in names}


RELEASED = HunyuanVideoConfig()


@pytest.mark.parametrize("naming", ["original", "comfyui", "comfyui new"])
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_naming_prefix_and_sizes_are_read_from_the_header(hunyuan_config, naming: str, prefix: str):
    found = detect(header_of(hunyuan_config, naming, prefix))
    assert found is not None
    assert (found.config, found.naming, found.prefix) == (hunyuan_config, naming, prefix)
    assert refuse(header_of(hunyuan_config, naming, prefix)) == ""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"in_channels": 32},
        {"in_channels": 33},
        {"guidance": False},
        {"double_blocks": 12, "single_blocks": 3, "refiner_blocks": 1},
        {"hidden": 128, "heads": 1, "mlp_width": 300, "text_width": 8, "pooled_width": 5, "out_channels": 4},
    ],
    ids=str,
)
def test_every_size_is_told_by_some_shape(change: dict[str, int]):
    config = replace(RELEASED, **change)
    found = detect(header_of(config))
    assert found is not None
    assert found.config == config


def test_rotary_axes_follow_the_head_size():
    assert RELEASED.rope_axes == (16, 56, 56)
    assert HunyuanVideoConfig(hidden=64, heads=2).rope_axes == (4, 14, 14)


def test_other_weights_in_an_all_in_one_file_do_not_matter(hunyuan_config):
    mixed = {
        **header_of(hunyuan_config, "comfyui", "model.diffusion_model."),
        **header("vae.decoder.conv_in.conv.weight", "text_encoders.clip_l.x.weight"),
    }
    found = detect(mixed)
    assert found is not None
    assert found.prefix == "model.diffusion_model."


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "it holds a LoRA"),
        (["diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight"], "it holds a LoRA"),
        (["lora_unet_single_blocks_0_linear1.hada_w1_a"], "it holds a LoRA"),
        (
            ["clean_x_embedder.proj.weight", "context_embedder.token_refiner.refiner_blocks.0.norm1.weight"],
            "a FramePack network",
        ),
        (
            ["context_embedder.token_refiner.refiner_blocks.0.norm1.weight"],
            "in diffusers naming.*Expected .*original or ComfyUI naming.*mp_rank_00_model_states.pt",
        ),
        (["txt_in.individual_token_refiner.blocks.0.norm1.weight", "byt5_in.fc1.weight"], "HunyuanVideo 1.5"),
        (["blocks.0.cross_attn.q.weight"], "a Wan network"),
        (["model.diffusion_model.blocks.0.cross_attn.q.weight"], "a Wan network"),
        (["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "a Flux network"),
        (["transformer_blocks.0.img_mod.1.weight"], "a Qwen-Image network"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        (["encoder.conv_in.conv.weight"], "it holds a VAE"),
        (["vae.decoder.conv_in.conv.weight"], "it holds a VAE"),
        (["decoder.conv1.weight"], "it holds a VAE"),
        (["model.embed_tokens.weight"], "a text encoder"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder"),
        (["some.tensor", "other"], r"none of its 2 tensors is known \(first: some.tensor, other\)"),
        ([], "none of its 0 tensors"),
    ],
)
def test_a_wrong_kind_of_file_is_called_by_its_name(names: list[str], words: str):
    assert detect(header(*names)) is None
    assert re.search(words, refuse(header(*names))), refuse(header(*names))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("img_in.proj.weight", (64,), r"img_in.proj.weight has shape \[64\]; expected 5 axes"),
        ("img_in.proj.weight", (64, 0, 1, 2, 2), "img_in.proj.weight has shape"),
        ("double_blocks.0.img_attn_q_norm.weight", (48,), "does not divide into heads of 48"),
        ("double_blocks.0.img_attn_q_norm.weight", (16,), "multiple of 32"),
        ("double_blocks.0.img_attn_q_norm.weight", (4096,), "does not divide"),
    ],
)
def test_a_header_that_lies_about_a_size_is_refused(
    hunyuan_config, name: str, shape: tuple[int, ...], words: str
):
    lying = {**header_of(hunyuan_config), name: info(*shape)}
    assert detect(lying) is None
    assert re.search(words, refuse(lying)), refuse(lying)


def test_a_header_with_endless_blocks_is_refused(hunyuan_config):
    endless = {
        **header_of(hunyuan_config),
        **{f"single_blocks.{n}.linear1.weight": info(1) for n in range(5000)},
    }
    assert detect(endless) is None
    assert "names 5000 single_blocks" in refuse(endless)


@pytest.mark.parametrize(
    "name", ["img_in.proj.weight", "txt_in.input_embedder.weight", "double_blocks.0.img_attn_qkv.weight"]
)
def test_a_network_without_a_telling_tensor_is_called_incomplete(hunyuan_config, name: str):
    cut = header_of(hunyuan_config)
    del cut[name]
    assert detect(cut) is None
    assert "it looks like HunyuanVideo" in refuse(cut)
    assert name in refuse(cut)


def test_names_in_comfyui_are_those_of_its_own_files():
    """Written out by hand from a file of Comfy-Org's."""
    assert [
        comfyui_name(name)
        for name in (
            "txt_in.t_embedder.mlp.0.weight",
            "txt_in.c_embedder.linear_2.bias",
            "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight",
            "txt_in.individual_token_refiner.blocks.1.mlp.fc1.bias",
            "txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1.weight",
            "time_in.mlp.2.weight",
            "guidance_in.mlp.0.bias",
            "vector_in.in_layer.weight",
            "double_blocks.3.txt_mod.linear.weight",
            "double_blocks.3.img_attn_qkv.bias",
            "double_blocks.3.txt_attn_k_norm.weight",
            "double_blocks.3.img_attn_proj.weight",
            "double_blocks.3.img_mlp.fc2.weight",
            "single_blocks.7.q_norm.weight",
            "single_blocks.7.modulation.linear.bias",
            "single_blocks.7.linear1.weight",
            "final_layer.adaLN_modulation.1.weight",
        )
    ] == [
        "txt_in.t_embedder.in_layer.weight",
        "txt_in.c_embedder.out_layer.bias",
        "txt_in.individual_token_refiner.blocks.1.self_attn.qkv.weight",
        "txt_in.individual_token_refiner.blocks.1.mlp.0.bias",
        "txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1.weight",
        "time_in.out_layer.weight",
        "guidance_in.in_layer.bias",
        "vector_in.in_layer.weight",
        "double_blocks.3.txt_mod.lin.weight",
        "double_blocks.3.img_attn.qkv.bias",
        "double_blocks.3.txt_attn.norm.key_norm.scale",
        "double_blocks.3.img_attn.proj.weight",
        "double_blocks.3.img_mlp.2.weight",
        "single_blocks.7.norm.query_norm.scale",
        "single_blocks.7.modulation.lin.bias",
        "single_blocks.7.linear1.weight",
        "final_layer.adaLN_modulation.1.weight",
    ]


def test_no_two_weights_share_a_name_in_comfyui():
    with torch.device("meta"):
        names = list(HunyuanVideo(RELEASED).state_dict())
    assert len({comfyui_name(name) for name in names}) == len(names) == 856


def test_the_240_adapted_modules_are_saved_under_names_that_comfyui_has():
    spec = architecture("hunyuan_video")
    with torch.device("meta"):
        network = HunyuanVideo(RELEASED)
    blocks = [path for path, m in network.named_modules() if type(m).__name__ in spec.adapt_classes]
    adapted = [
        path
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and any(path.startswith(f"{block}.") for block in blocks)
        and not any(re.fullmatch(pattern, path) for pattern in spec.adapt_exclude)
    ]
    assert len(adapted) == 240
    for path in adapted:
        saved = path
        for ours, theirs in LORA_NAMES.comfyui:
            saved = saved.replace(ours, theirs)
        assert saved.replace(".", "_") == comfyui_name(f"{path}.weight")[: -len(".weight")].replace(".", "_")
