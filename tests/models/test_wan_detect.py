"""Telling Wan's networks from each other, from their relatives, and from files mistaken for one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from wan_networks import KINDS, config_of

from musubi_core.errors import ConfigError
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.registry import architectures
from musubi_core.models.spec import Header
from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.detect import PREFIXES, detect, refuse
from musubi_core.models.wan.model import Wan
from musubi_core.models.wan.released import LAYOUTS, task_of
from musubi_core.models.wan.spec import SPEC
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.saving import lora_tensors
from musubi_core.networks.targets import Targets


def info(*shape: int) -> TensorInfo:
    return TensorInfo(shape=shape, dtype="bfloat16")


def header(*names: str) -> Header:
    return {name: info(4, 4) for name in names}


def header_of(config: WanConfig, prefix: str = "") -> dict[str, TensorInfo]:
    with torch.device("meta"):
        state = Wan(config).state_dict()
    return {prefix + name: info(*tensor.shape) for name, tensor in state.items()}


def tiny(task: str = "t2v-14B", **sizes: int) -> WanConfig:
    """Heads are 128 wide in every file, so one head is what detection finds here."""
    return config_of(task, heads=1, **sizes)


def sized(task: str, hidden: int) -> WanConfig:
    """A network of a released width; nothing is built from it."""
    return replace(config_of(task), hidden=hidden, heads=hidden // 128)


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("task", KINDS)
def test_prefix_and_sizes_are_read_from_the_header(task: str, prefix: str):
    found = detect(header_of(tiny(task), prefix))
    assert found is not None
    assert (found.config, found.naming, found.prefix) == (tiny(task), "original", prefix)
    assert refuse(header_of(tiny(task), prefix)) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3},
        {"hidden": 256, "heads": 2, "mlp_width": 300},
        {"text_width": 8},
        {"in_channels": 36, "picture_width": 40},
        {"in_channels": 36, "picture_width": 40, "picture_tokens": 10},
    ],
    ids=str,
)
def test_every_size_is_told_by_some_shape(change: dict[str, int]):
    config = replace(tiny(), **change)
    found = detect(header_of(config))
    assert found is not None
    assert found.config == config


def test_rotary_axes_follow_the_head_size():
    assert WanConfig().rope_axes == (44, 42, 42)
    assert config_of("t2v-14B").rope_axes == (24, 20, 20)


def test_other_architectures_do_not_claim_a_wan_network():
    finders = [spec.name for spec in architectures() if spec.detect(header_of(tiny()))]
    assert set(finders) <= {"wan"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("vace_patch_embedding.weight", "it is VACE"),
        ("vace_blocks.0.before_proj.weight", "it is VACE"),
        ("control_adapter.conv.weight", "Fun-Camera"),
        ("casual_audio_encoder.encoder.weight", "Wan 2.2 S2V"),
        ("audio_proj.proj1.weight", "driven by sound"),
        ("face_adapter.fuser_blocks.0.linear1_q.weight", "Wan 2.2 Animate"),
        ("ref_conv.weight", "Fun-Control 1.1"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_relative_is_refused_by_its_name(extra: str, words: str, prefix: str):
    mixed = {**header_of(tiny(), prefix), prefix + extra: info(4, 4)}
    assert detect(mixed) is None
    assert words in refuse(mixed)
    assert "Expected a Wan 2.1 or 2.2 network" in refuse(mixed)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "it holds a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "it holds a LoRA"),
        (["vace_blocks.0.before_proj.weight"], "only the part of VACE"),
        (["condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight"], "in diffusers naming"),
        (["txt_in.individual_token_refiner.blocks.0.norm1.weight"], "a Hunyuan network"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a Flux network"),
        (["transformer_blocks.0.img_mod.1.weight"], "a Qwen-Image network"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        (["encoder.conv1.weight"], "it holds a VAE"),
        (["vision_model.embeddings.class_embedding"], "a CLIP image encoder"),
        (["visual.cls_embedding"], "a CLIP image encoder"),
        (["token_embedding.weight"], "a text encoder"),
        (["shared.weight"], "a text encoder"),
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
        ("patch_embedding.weight", (64,), r"patch_embedding.weight has shape \[64\]; expected 5 axes"),
        ("patch_embedding.weight", (128, 0, 1, 2, 2), "patch_embedding.weight has shape"),
        ("patch_embedding.weight", (192, 16, 1, 2, 2), "192 does not divide into heads of 128"),
        (
            "patch_embedding.weight",
            (128, 52, 1, 2, 2),
            "has 52 input and 16 output channels without a branch",
        ),
        ("time_embedding.0.weight", (128, 64), "64 waves"),
        ("head.modulation", (2, 128), "head.modulation has shape"),
        ("img_emb.emb_pos", (514,), "img_emb.emb_pos has shape"),
        ("img_emb.emb_pos", (1, 514, 1280), "positions of picture features, but no branch"),
    ],
)
def test_a_header_that_lies_about_a_size_is_refused(name: str, shape: tuple[int, ...], words: str):
    lying = {**header_of(tiny()), name: info(*shape)}
    assert detect(lying) is None
    assert re.search(words, refuse(lying)), refuse(lying)


def test_a_header_with_endless_blocks_is_refused():
    endless = {**header_of(tiny()), **{f"blocks.{n}.norm3.weight": info(1) for n in range(5000)}}
    assert detect(endless) is None
    assert "names 5000 blocks" in refuse(endless)


@pytest.mark.parametrize("name", ["patch_embedding.weight", "blocks.0.ffn.0.weight", "head.head.weight"])
def test_a_network_without_a_telling_tensor_is_called_incomplete(name: str):
    cut = header_of(tiny())
    del cut[name]
    assert detect(cut) is None
    assert "it looks like Wan" in refuse(cut)
    assert name in refuse(cut)


# What a file tells of the task


@pytest.mark.parametrize(
    ("kind", "hidden", "task"),
    [
        ("t2v-14B", 1536, "t2v-1.3B"),
        ("t2v-14B", 5120, "t2v-14B"),
        ("t2v-14B", 128, "t2v-14B"),
        ("i2v-14B", 5120, "i2v-14B"),
        ("i2v-14B", 1536, "i2v-14B"),  # Fun-InP, which takes the same
        ("flf2v-14B", 5120, "flf2v-14B"),
        ("t2v-14B-FC", 1536, "t2v-1.3B-FC"),
        ("i2v-A14B", 5120, "i2v-A14B"),
        ("ti2v-5B", 3072, "ti2v-5B"),
    ],
)
def test_the_task_is_read_from_the_file_where_it_tells(kind: str, hidden: int, task: str):
    assert task_of(sized(kind, hidden), Path("network.safetensors"), asked=None, experts=False) == task


@pytest.mark.parametrize(
    ("path", "experts", "task"),
    [
        ("wan2.1_t2v_14B_bf16.safetensors", False, "t2v-14B"),
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", False, "t2v-A14B"),
        ("Wan2.2-T2V-A14B/low_noise_model", False, "t2v-A14B"),
        ("low_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors", False, "t2v-A14B"),
        ("anything.safetensors", True, "t2v-A14B"),
    ],
)
def test_text_to_video_of_2_2_is_known_by_its_second_network_or_its_name(path: str, experts: bool, task: str):
    assert task_of(sized("t2v-14B", 5120), Path(path), asked=None, experts=experts) == task


def test_fun_control_of_14b_must_be_told_whether_it_starts_from_a_picture():
    config = sized("t2v-14B-FC", 5120)
    with pytest.raises(ConfigError, match=r"Give --task t2v-14B-FC or --task i2v-14B-FC"):
        task_of(config, Path("fun.safetensors"), asked=None, experts=False)
    assert task_of(config, Path("fun.safetensors"), asked="i2v-14B-FC", experts=False) == "i2v-14B-FC"


@pytest.mark.parametrize(
    ("kind", "hidden", "asked", "words"),
    [
        (
            "t2v-14B",
            5120,
            "i2v-14B",
            r"16 input channels.*no branch.*fits --task t2v-14B or t2i-14B or t2v-A14B",
        ),
        ("t2v-14B", 1536, "t2v-14B", "width of 1536.*It fits --task t2v-1.3B"),
        ("i2v-14B", 5120, "i2v-A14B", "a branch for pictures.*It fits --task i2v-14B"),
        ("i2v-14B", 5120, "flf2v-14B", "It fits --task i2v-14B"),
        ("flf2v-14B", 5120, "i2v-14B", r"first and last\).*It fits --task flf2v-14B"),
        ("ti2v-5B", 3072, "t2v-14B-FC", "48 output channels"),
    ],
)
def test_a_task_that_the_file_contradicts_is_refused(kind: str, hidden: int, asked: str, words: str):
    with pytest.raises(ConfigError, match=words):
        task_of(sized(kind, hidden), Path("network.safetensors"), asked=asked, experts=False)


def test_every_task_has_a_network_that_detection_accepts():
    for task, layout in LAYOUTS.items():
        found = [kind for kind in KINDS if config_of(kind).layout == layout]
        assert len(found) == 1, task


# LoRA


def adapted(task: str, layers: int) -> nn.Module:
    with torch.device("meta"):
        return Wan(config_of(task, layers=layers))


@pytest.mark.parametrize(
    ("task", "layers", "count"),
    [
        ("t2v-14B", 40, 400),
        ("t2v-14B", 30, 300),
        ("i2v-14B", 40, 480),
        ("flf2v-14B", 40, 480),
        ("t2v-14B-FC", 30, 360),
        ("i2v-A14B", 40, 400),
        ("ti2v-5B", 30, 300),
    ],
)
def test_the_layers_that_get_adapters_are_those_of_existing_loras(task: str, layers: int, count: int):
    targets = Targets(classes=SPEC.adapt_classes, exclude=SPEC.adapt_exclude, comfyui=SPEC.lora_names.comfyui)
    network = build_network(
        adapted(task, layers), NetworkConfig(), targets, generator=torch.Generator().manual_seed(0)
    )
    assert len(network.adapters) == count
    leaves = {name.split(".", 2)[2] for name in network.adapters}
    attention = {f"{part}.{leaf}" for part in ("self_attn", "cross_attn") for leaf in "qkvo"}
    pictures = {"cross_attn.k_img", "cross_attn.v_img"} if config_of(task).picture_width else set()
    assert leaves == attention | pictures | {"ffn.0", "ffn.2"}
    keys = set(lora_tensors(network, None, "comfyui"))
    assert "lora_unet_blocks_0_ffn_2.lora_down.weight" in keys
    assert keys == set(lora_tensors(network, None, "musubi")), "both programs use the same names"
