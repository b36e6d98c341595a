"""Telling FLUX.1 Kontext from its relatives and from every file that users mistake for it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from flux_kontext_networks import TINY

from musubi_core.files.tensor_info import TensorInfo
from musubi_core.models.flux_kontext.config import FluxKontextConfig
from musubi_core.models.flux_kontext.detect import PREFIXES, detect, refuse
from musubi_core.models.flux_kontext.keys import stored_names
from musubi_core.models.flux_kontext.model import FluxKontext
from musubi_core.models.registry import architecture
from musubi_core.models.spec import Header
from musubi_core.networks.building import build_network
from musubi_core.networks.config import NetworkConfig
from musubi_core.networks.targets import Targets

RELEASED = FluxKontextConfig()


def header_of(
    config: FluxKontextConfig = TINY, naming: str = "original", prefix: str = ""
) -> dict[str, TensorInfo]:
    with torch.device("meta"):
        state = FluxKontext(config).state_dict()
    stored = stored_names(state, naming=naming, prefix=prefix)
    return {stored[name]: info(*tensor.shape) for name, tensor in state.items()}


def info(*shape: int) -> TensorInfo:
    return TensorInfo(shape=shape, dtype="bfloat16")


def header(*names: str) -> Header:
    return {name: info(4, 4) for name in names}


def without(header: Header, start: str) -> Header:
    return {name: shape for name, shape in header.items() if not name.startswith(start)}


@pytest.mark.parametrize("naming", ["original", "comfyui new"])
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_naming_prefix_and_sizes_are_read_from_the_header(naming: str, prefix: str):
    found = detect(header_of(TINY, naming, prefix))
    assert found is not None
    assert (found.config, found.naming, found.prefix) == (TINY, naming, prefix)
    assert refuse(header_of(TINY, naming, prefix)) == ""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"double_blocks": 12, "single_blocks": 3},
        {"hidden": 128, "heads": 1, "mlp_width": 300, "text_width": 8, "pooled_width": 5, "channels": 4},
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
    assert TINY.rope_axes == (4, 14, 14)


def test_other_weights_in_an_all_in_one_file_do_not_matter():
    mixed = {
        **header_of(prefix="model.diffusion_model."),
        **header("vae.decoder.conv_in.weight", "text_encoders.t5xxl.transformer.shared.weight"),
    }
    found = detect(mixed)
    assert found is not None
    assert found.prefix == "model.diffusion_model."


def channels(into: int) -> Header:
    return {**header_of(RELEASED), "img_in.weight": info(3072, into)}


@pytest.mark.parametrize(
    ("relative", "words"),
    [
        (without(header_of(), "guidance_in."), r"FLUX\.1 schnell.*guidance_in\.in_layer\.weight is missing"),
        (channels(384), r"it is FLUX\.1 Fill: a token has 384 numbers on the way in and 64 on the way out"),
        (channels(128), r"it is FLUX\.1 Canny or Depth"),
        (channels(196), r"it is a FLUX\.1 network with further inputs"),
        (
            {**header_of(), **header("double_blocks.0.img_attn.qkv.weight.absmax")},
            "quantised by bitsandbytes, which is not read",
        ),
        (
            header("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"),
            r"FLUX\.2, which is another network",
        ),
        (
            header("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"),
            "Chroma, which is another network",
        ),
        (
            header("x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"),
            r"in diffusers naming, which is not read.*Expected .*original naming.*flux1-kontext-dev",
        ),
        (header("transformer_blocks.0.qkv_proj.qweight"), "quantised for Nunchaku"),
    ],
)
def test_a_relative_is_refused_with_the_reason(relative: Header, words: str):
    assert detect(relative) is None
    assert re.search(words, refuse(relative)), refuse(relative)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "it holds a LoRA"),
        (["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], "it holds a LoRA"),
        (["txt_in.individual_token_refiner.blocks.0.norm1.weight"], "a Hunyuan network"),
        (["model.diffusion_model.blocks.0.cross_attn.q.weight"], "a Wan network"),
        (["transformer_blocks.0.img_mod.1.weight"], "a Qwen-Image network"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        (["decoder.conv_in.weight"], "it holds a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder"),
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
        ("img_in.weight", (64,), r"img_in.weight has shape \[64\]; expected 2 axes"),
        ("txt_in.weight", (64, 0), "txt_in.weight has shape"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", (48,), "heads of 48"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", (16,), "multiple of 32"),
    ],
)
def test_a_header_that_lies_about_a_size_is_refused(name: str, shape: tuple[int, ...], words: str):
    lying = {**header_of(), name: info(*shape)}
    assert detect(lying) is None
    assert re.search(words, refuse(lying)), refuse(lying)


def test_a_header_with_endless_blocks_is_refused():
    endless = {**header_of(), **{f"single_blocks.{n}.linear1.weight": info(1) for n in range(5000)}}
    assert detect(endless) is None
    assert "names 5000 single_blocks" in refuse(endless)


@pytest.mark.parametrize(
    "name", ["txt_in.weight", "double_blocks.0.img_mlp.0.weight", "double_blocks.0.img_attn.norm.query_norm."]
)
def test_a_network_without_a_telling_tensor_is_called_incomplete(name: str):
    cut = without(header_of(), name)
    assert detect(cut) is None
    assert "it looks like FLUX.1" in refuse(cut)
    assert name in refuse(cut)


def test_the_228_adapted_layers_are_saved_under_the_names_of_the_released_loras():
    spec = architecture("flux_kontext")
    with torch.device("meta"):
        model = FluxKontext(RELEASED)
    targets = Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude, comfyui=spec.lora_names.comfyui)
    network = build_network(model, NetworkConfig(network_dim=1), targets, generator=torch.Generator())
    assert len(network.adapters) == 228 == 19 * 8 + 38 * 2
    inside = {re.sub(r"\d+", "N", name, count=1) for name in network.adapters}
    assert inside == {
        *(f"double_blocks.N.{stream}_attn.{part}" for stream in ("img", "txt") for part in ("qkv", "proj")),
        *(f"double_blocks.N.{stream}_mlp.{part}" for stream in ("img", "txt") for part in (0, 2)),
        *(f"single_blocks.N.linear{part}" for part in (1, 2)),
    }


def test_modulation_is_trained_when_the_user_asks_for_it_and_norms_only_then():
    spec = architecture("flux_kontext")
    with torch.device("meta"):
        model = FluxKontext(TINY)
    targets = Targets(classes=spec.adapt_classes, exclude=spec.adapt_exclude)
    wish = NetworkConfig(network_args=("include_patterns=[r'.*img_mod.*']",))
    network = build_network(model, wish, targets, generator=torch.Generator())
    extra = [name for name in network.adapters if "mod" in name]
    assert extra == ["double_blocks.0.img_mod.lin", "double_blocks.1.img_mod.lin"]
