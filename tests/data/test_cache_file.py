"""Names, keys, shapes and metadata are musubi-tuner's, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cache_fixtures import HV, foreign_latent, foreign_text
from safetensors import safe_open
from safetensors.torch import save_file

from musubi_core.data.cache_file import (
    latent_metadata,
    our_metadata,
    read_cache,
    read_cache_header,
    tensor_key,
    tensor_name,
    text_metadata,
    write_cache,
)
from musubi_core.data.items import Item, Sample, text_name
from musubi_core.errors import BadFileError

GOLDEN_KEYS = [  # canonical name, shape, dtype, key: tables 3.2 to 3.4 of the reference
    ("latents", (16, 33, 68, 120), "float16", "latents_33x68x120_float16"),
    ("latents", (16, 64, 48), "float32", "latents_1x64x48_float32"),
    ("latents_image", (20, 5, 8, 6), "bfloat16", "latents_image_5x8x6_bfloat16"),
    ("latents_control", (16, 64, 48), "float32", "latents_control_1x64x48_float32"),
    ("latents_control_0", (16, 1, 64, 48), "bfloat16", "latents_control_0_1x64x48_bfloat16"),
    ("latents_clean_2x", (16, 2, 8, 6), "float16", "latents_clean_2x_2x8x6_float16"),
    ("latent_indices", (9,), "int64", "latent_indices_int64"),
    ("clean_latent_2x_indices", (2,), "int64", "clean_latent_2x_indices_int64"),
    ("f_indices", (3,), "int32", "f_indices_int32"),
    ("llm", (256, 4096), "float16", "llm_float16"),
    ("llm_mask", (256,), "int64", "llm_mask"),
    ("clipL", (768,), "float16", "clipL_float16"),
    ("clipL_mask", (77,), "int64", "clipL_mask"),
    ("llama_attention_mask", (512,), "bool", "llama_attention_mask"),
    ("varlen_t5", (17, 4096), "bfloat16", "varlen_t5_bfloat16"),
    ("varlen_vl_embed", (17, 3584), "float8_e4m3fn", "varlen_vl_embed_float8_e4m3fn"),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "key"), GOLDEN_KEYS)
def test_keys_are_those_of_the_reference_both_ways(name, shape, dtype, key):
    assert tensor_key(name, shape, dtype) == key
    assert tensor_name(key) == name


@pytest.mark.parametrize(
    "key", ["weight", "lora_unet_a.lora_down.weight", "latents_float16", "llm_complex64", ""]
)
def test_a_key_that_no_cache_has_is_refused(key):
    with pytest.raises(ValueError, match="no key of a cache file"):
        tensor_name(key)


def picture(**values) -> Sample:
    item = Item(
        path=Path("a.png"), stem="a", is_video=False, size=(640, 480), frames=1, fps=0, caption="", **values
    )
    return Sample(item=item, bucket=(832, 624))


def clip() -> Sample:
    item = Item(path=Path("b.mp4"), stem="b", is_video=True, size=(1920, 1080), frames=90, fps=24, caption="")
    return Sample(item=item, bucket=(960, 544), start=13, frames=25)


def test_file_names_are_those_of_the_reference():
    assert picture().latent_name("hv") == "a_0640x0480_hv.safetensors"
    assert clip().latent_name("hv") == "b_00013-025_0960x0544_hv.safetensors"
    assert text_name("b", "hv") == "b_hv_te.safetensors"


def test_metadata_is_that_of_the_reference():
    base = {"architecture": "hunyuan_video", "format_version": "1.0.1"}
    assert latent_metadata(HV, picture()) == {**base, "width": "640", "height": "480"}
    assert latent_metadata(HV, clip()) == {**base, "width": "960", "height": "544", "frame_count": "25"}
    assert text_metadata("hunyuan_video", "a cat") == {**base, "caption1": "a cat"}


def test_a_written_file_has_the_keys_shapes_and_dtypes_that_musubi_tuner_reads(tmp_path):
    tensors = {
        "llm": torch.randn(256, 32).half(),
        "llm_mask": torch.ones(256, dtype=torch.int64),
        "clipL": torch.randn(24).half(),
        "clipL_mask": torch.ones(77, dtype=torch.int64),
    }
    path = tmp_path / "a_hv_te.safetensors"
    metadata = text_metadata("hunyuan_video", "ein Kätzchen") | our_metadata("llm", "f00", {"pass": "llm"})
    write_cache(path, tensors, metadata)
    with safe_open(path, "pt") as file:  # the other program's reader
        assert set(file.keys()) == {"llm_float16", "llm_mask", "clipL_float16", "clipL_mask"}
        assert torch.equal(file.get_tensor("llm_float16"), tensors["llm"])
        assert file.metadata()["caption1"] == "ein Kätzchen"
    header, read = read_cache(path)
    assert header.ours and header.fingerprint("llm") == "f00" and header.fingerprint("clipL") == ""
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_file_made_by_musubi_tuner_is_read(tmp_path):
    header = read_cache_header(foreign_latent(tmp_path / "a_0032x0032_hv.safetensors"))
    assert not header.ours and header.architecture == "hunyuan_video"
    assert header.tensors["latents"].shape == (16, 1, 4, 4)
    header, tensors = read_cache(foreign_text(tmp_path / "a_hv_te.safetensors"))
    assert set(tensors) == {"llm", "llm_mask", "clipL", "clipL_mask"}
    assert header.metadata["caption1"] == "a cat"


def test_a_lora_is_not_taken_for_a_cache(tmp_path):
    path = tmp_path / "style_hv.safetensors"
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(BadFileError, match=r"style_hv.*not a cache file"):
        read_cache_header(path)


def test_a_name_stored_twice_is_refused(tmp_path):
    path = tmp_path / "a_hv_te.safetensors"
    save_file({"llm_float16": torch.zeros(2), "llm_float32": torch.zeros(2)}, path)
    with pytest.raises(BadFileError, match="llm twice"):
        read_cache(path)
