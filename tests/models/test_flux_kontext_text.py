"""Captions as FLUX.1 sees them: what transformers' own pipeline of tokenizer and model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musubi_core.config import ConfigError
from musubi_core.encoders.tiny_clip import write_tiny_clip
from musubi_core.encoders.tiny_t5 import write_tiny_t5
from musubi_core.errors import BadFileError
from musubi_core.models.flux_kontext.options import TextOptions
from musubi_core.models.flux_kontext.text import texts
from musubi_core.models.spec import EncoderRequest

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
CAPTIONS = ["Make the small red cup green.", "", "a dog " * 400]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    generator = torch.Generator().manual_seed(0)
    write_tiny_t5(folder / "text_encoder_2", generator)
    write_tiny_clip(folder / "text_encoder", generator)
    return {"text_encoder1": folder / "text_encoder_2", "text_encoder2": folder / "text_encoder"}


def passes(encoders, dtype: torch.dtype | None = torch.float32, **options):
    options = TextOptions(**{**encoders, **options})
    return texts(EncoderRequest(device=CPU, dtype=dtype, options=options))


def encode(encoders, **options) -> list[dict[str, Tensor]]:
    items: list[dict[str, Tensor]] = [{} for _ in CAPTIONS]
    for each in passes(encoders, **options):
        for item, tensors in zip(items, each.open()(CAPTIONS), strict=True):
            item |= tensors
    return items


@pytest.fixture(scope="module")
def encoded(encoders):
    return encode(encoders)


def test_t5_gives_512_states_with_padding_and_without_a_mask(encoders, encoded):
    from transformers import AutoTokenizer, T5EncoderModel

    folder = encoders["text_encoder1"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = T5EncoderModel.from_pretrained(folder, local_files_only=True).float().eval()
    ids = tokenizer(
        CAPTIONS, padding="max_length", max_length=512, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model(ids, attention_mask=None).last_hidden_state
    assert expected.shape == (3, 512, 64)
    for item, states in zip(encoded, expected, strict=True):
        torch.testing.assert_close(item["t5_vec"], states, rtol=0, atol=2e-5)


def test_clip_gives_its_pooled_vector(encoders, encoded):
    from transformers import AutoTokenizer, CLIPTextModel

    folder = encoders["text_encoder2"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = CLIPTextModel.from_pretrained(folder, local_files_only=True).float().eval()
    ids = tokenizer(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model(ids).pooler_output
    for item, vector in zip(encoded, expected, strict=True):
        torch.testing.assert_close(item["clip_l_pooler"], vector, rtol=0, atol=1e-5)


def single_files(encoders, folder: Path, *, scaled: bool = False) -> dict[str, Path]:
    """The encoders as ComfyUI's single files, and where their tokenizers are."""
    t5, clip = (load_file(encoders[name] / "model.safetensors") for name in encoders)
    if scaled:
        for name in [name for name in t5 if name.endswith(("wo.weight", "q.weight"))]:
            scale = t5[name].float().abs().max() / 448
            t5[name] = (t5[name].float() / scale).to(FP8)
            t5[f"{name.removesuffix('.weight')}.scale_weight"] = scale
        t5["scaled_fp8"] = torch.zeros(0, dtype=FP8)
    save_file(t5, folder / "t5xxl.safetensors")
    save_file(clip, folder / "clip_l.safetensors")
    return {
        "text_encoder1": folder / "t5xxl.safetensors",
        "text_encoder2": folder / "clip_l.safetensors",
        "tokenizer1": str(encoders["text_encoder1"]),
        "tokenizer2": str(encoders["text_encoder2"]),
    }


def test_repackaged_single_files_give_the_same(tmp_path, encoders, encoded):
    for item, expected in zip(encode(single_files(encoders, tmp_path)), encoded, strict=True):
        for name, tensor in expected.items():
            assert torch.equal(item[name], tensor)


@pytest.mark.parametrize("how", ["scaled file", "fp8_t5"])
def test_8_bits_change_t5_a_little_and_clip_not_at_all(tmp_path, encoders, encoded, how):
    if how == "fp8_t5":
        items = encode(encoders, fp8_t5=True)
    else:
        items = encode(single_files(encoders, tmp_path, scaled=True))
    for item, expected in zip(items, encoded, strict=True):
        error = (item["t5_vec"] - expected["t5_vec"]).norm() / expected["t5_vec"].norm()
        assert 0 < error < 0.1
        assert torch.equal(item["clip_l_pooler"], expected["clip_l_pooler"])


def test_text_is_bfloat16_unless_asked_otherwise(encoders):
    for each in passes(encoders, dtype=None):
        assert each.settings["dtype"] == "bfloat16"
        assert {tensor.dtype for tensor in each.open()(["a cat"])[0].values()} == {torch.bfloat16}
    assert {each.settings["dtype"] for each in passes(encoders, None, text_encoder_dtype="fp32")} == {
        "float32"
    }


def test_what_changes_the_text_is_in_the_settings(encoders):
    base = [each.settings for each in passes(encoders)]
    t5, clip = (each.settings for each in passes(encoders, fp8_t5=True))
    assert t5 != base[0]
    assert clip == base[1]
    assert [each.name for each in passes(encoders)] == ["t5", "clip_l"]


def test_the_tokenizers_of_the_official_folders_are_found(tmp_path, encoders):
    """text_encoder_2 belongs to tokenizer_2, and text_encoder to tokenizer."""
    for encoder, tokenizer in (("text_encoder_2", "tokenizer_2"), ("text_encoder", "tokenizer")):
        source = encoders["text_encoder1"].parent / encoder
        for place in (encoder, tokenizer):
            (tmp_path / place).mkdir()
        for file in source.iterdir():
            place = tokenizer if "tokenizer" in file.name else encoder
            (tmp_path / place / file.name).write_bytes(file.read_bytes())
    official = {"text_encoder1": tmp_path / "text_encoder_2", "text_encoder2": tmp_path / "text_encoder"}
    assert [each.settings for each in passes(official)] == [each.settings for each in passes(encoders)]


@pytest.mark.parametrize(("missing", "name"), [("text_encoder1", "T5-XXL"), ("text_encoder2", "CLIP-L")])
def test_a_missing_encoder_is_named(encoders, missing, name):
    with pytest.raises(ConfigError, match=rf"{name} was not given\. Set --{missing}"):
        passes(encoders, **{missing: None})


def test_float16_is_refused_before_anything_is_opened(encoders):
    with pytest.raises(ConfigError, match=r"T5-XXL overflows to NaN.*bf16"):
        passes(encoders, None, text_encoder_dtype="fp16")


def test_encoders_in_each_others_place_are_refused(encoders):
    with pytest.raises(BadFileError, match="is not a T5 text encoder"):
        passes(encoders, text_encoder1=encoders["text_encoder2"])
    with pytest.raises(BadFileError, match="is not a CLIP text encoder"):
        passes(encoders, text_encoder2=encoders["text_encoder1"])


def test_clip_of_another_length_is_refused(tmp_path, encoders):
    weights = load_file(encoders["text_encoder2"] / "model.safetensors")
    weights["text_model.embeddings.position_embedding.weight"] = torch.zeros(248, 64).half()
    save_file(weights, tmp_path / "long_clip.safetensors")
    with pytest.raises(BadFileError, match="for 248 tokens; CLIP-L has 77"):
        passes(encoders, text_encoder2=tmp_path / "long_clip.safetensors")
