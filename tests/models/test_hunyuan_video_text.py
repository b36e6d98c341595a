"""Captions as HunyuanVideo sees them: what transformers' own tokenizers and whole models give."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hunyuan_video_files import comfyui_text_encoder
from torch import Tensor

from musubi_core.config import ConfigError
from musubi_core.errors import BadFileError
from musubi_core.models.hunyuan_video.options import TextOptions
from musubi_core.models.hunyuan_video.text import TEMPLATE, template_crop, texts
from musubi_core.models.hunyuan_video.tiny import write_tiny
from musubi_core.models.hunyuan_video.tiny_tokenizers import write_llama_tokenizer
from musubi_core.models.spec import EncoderRequest

CPU = torch.device("cpu")
CAPTIONS = ["a cat sleeps on a red chair", "", "naïve café 東京 {} <|eot_id|>", "a dog runs " * 200]
TOKENS, CROP = 256, 95


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    return dict(write_tiny(tmp_path_factory.mktemp("tiny"), 0).options)


def passes(encoders, dtype: torch.dtype | None = torch.float32, device: torch.device = CPU, **options):
    options = TextOptions(**{**encoders, **options})
    return texts(EncoderRequest(device=device, dtype=dtype, options=options))


def encode(encoders, captions=CAPTIONS, dtype=torch.float32, **options) -> list[dict[str, Tensor]]:
    items: list[dict[str, Tensor]] = [{} for _ in captions]
    for each in passes(encoders, dtype, **options):
        for item, tensors in zip(items, each.open()(captions), strict=True):
            assert tuple(tensors) == each.tensors
            item |= tensors
    return items


@pytest.fixture(scope="module")
def encoded(encoders):
    return encode(encoders)


def assert_same(item: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal where the mask counts, up to what the size of a batch does to rounding."""
    assert torch.equal(item["llm_mask"], other["llm_mask"])
    assert torch.equal(item["clipL_mask"], other["clipL_mask"])
    valid = item["llm_mask"].bool()
    torch.testing.assert_close(item["llm"][valid], other["llm"][valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(item["clipL"], other["clipL"], rtol=0, atol=1e-5)


def test_the_template_is_tencents():
    assert len(TEMPLATE) == 512
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest().startswith("a52f68dde3637b12")


def test_states_are_those_of_transformers_whole_model_three_from_the_end(encoders, encoded):
    from transformers import AutoTokenizer, LlamaModel

    folder = encoders["text_encoder1"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = LlamaModel.from_pretrained(folder, local_files_only=True).float().eval()
    prompts = [TEMPLATE.replace("{}", caption) for caption in CAPTIONS]
    batch = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=TOKENS + CROP, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states[-3]
    for item, state, mask in zip(encoded, states, batch.attention_mask, strict=True):
        assert item["llm"].shape == (TOKENS, 128)
        assert item["llm_mask"].dtype == torch.int64
        assert torch.equal(item["llm_mask"], mask[CROP:])
        valid = mask[CROP:].bool()
        torch.testing.assert_close(item["llm"][valid], state[CROP:][valid], rtol=0, atol=1e-5)


def test_pooled_captions_are_those_of_transformers(encoders, encoded):
    from transformers import AutoTokenizer, CLIPTextModel

    folder = encoders["text_encoder2"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = CLIPTextModel.from_pretrained(folder, local_files_only=True).float().eval()
    batch = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=batch.input_ids).pooler_output
    for item, wanted, mask in zip(encoded, expected, batch.attention_mask, strict=True):
        assert item["clipL"].shape == (64,)
        assert torch.equal(item["clipL_mask"], mask)
        torch.testing.assert_close(item["clipL"], wanted, rtol=0, atol=1e-5)


def test_the_template_takes_95_tokens_and_the_rest_is_the_caption(encoders, encoded):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoders["text_encoder1"] / "tokenizer.json"))
    assert template_crop(tokenizer) == CROP
    ids = tokenizer.encode(TEMPLATE.replace("{}", CAPTIONS[0])).ids
    assert tokenizer.decode(ids[CROP:], skip_special_tokens=False) == f"{CAPTIONS[0]}<|eot_id|>"
    assert [int(item["llm_mask"].sum()) for item in encoded][:2] == [len(ids) - CROP, 1]
    assert encoded[3]["llm_mask"].all() and encoded[3]["clipL_mask"].all()


@pytest.mark.parametrize("caption", ["", " x", "1", "(a)", "🚀", "東京"])
def test_no_caption_merges_with_the_template_before_it(encoders, caption):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoders["text_encoder1"] / "tokenizer.json"))
    before = tokenizer.encode(TEMPLATE.partition("{}")[0]).ids
    assert tokenizer.encode(TEMPLATE.replace("{}", caption)).ids[:CROP] == before


def test_a_caption_does_not_depend_on_its_batch(encoders, encoded):
    for caption, item in zip(CAPTIONS, encoded, strict=True):
        assert_same(encode(encoders, [caption])[0], item)


def test_comfyuis_single_files_give_the_same(tmp_path, encoders, encoded):
    files = {
        "text_encoder1": comfyui_text_encoder(
            encoders["text_encoder1"], tmp_path / "llava_llama3_fp16.safetensors"
        ),
        "text_encoder2": comfyui_text_encoder(encoders["text_encoder2"], tmp_path / "clip_l.safetensors"),
    }
    tokenizers = {f"tokenizer{n}": str(encoders[f"text_encoder{n}"]) for n in (1, 2)}
    for item, other in zip(encoded, encode(files, **tokenizers), strict=True):
        assert_same(item, other)


def test_the_asked_dtype_is_stored_and_float16_is_calculated_in_float32_on_a_cpu(encoders, encoded):
    for item, wanted in zip(encode(encoders, dtype=None), encoded, strict=True):
        assert item["llm"].dtype == item["clipL"].dtype == torch.float16
        assert torch.equal(item["clipL"], wanted["clipL"].half())
    by_option = encode(encoders, dtype=None, text_encoder_dtype="bf16")[0]
    assert by_option["llm"].dtype == by_option["clipL"].dtype == torch.bfloat16
    settings = [each.settings for each in passes(encoders, dtype=None)]
    assert {(each["dtype"], each["math"]) for each in settings} == {("float16", "float32")}


def test_fp8_changes_the_language_model_a_little_and_clip_not_at_all(encoders, encoded):
    item = encode(encoders, CAPTIONS[:1], fp8_llm=True)[0]
    valid = item["llm_mask"].bool()
    error = (item["llm"][valid] - encoded[0]["llm"][valid]).norm() / encoded[0]["llm"][valid].norm()
    assert 0 < error < 0.1
    torch.testing.assert_close(item["clipL"], encoded[0]["clipL"], rtol=0, atol=1e-6)


def test_what_changes_the_text_changes_the_settings_or_the_identity(tmp_path, encoders):
    llm, clip = passes(encoders)
    assert [each.name for each in (llm, clip)] == ["llm", "clipL"]
    assert llm.settings["template"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert passes(encoders, fp8_llm=True)[0].settings != llm.settings
    assert passes(encoders, fp8_llm=True)[1].settings == clip.settings
    assert passes(encoders, dtype=torch.float16)[0].settings != llm.settings
    assert passes(encoders, tokenizer1=str(encoders["text_encoder2"]))[0].settings != llm.settings
    other = dict(write_tiny(tmp_path, 1).options)
    assert passes(other)[0].identity != llm.identity
    assert passes(other)[1].identity != clip.identity
    assert passes(other)[0].settings == llm.settings


@pytest.mark.parametrize(
    ("option", "name"), [("text_encoder1", "LLaVA-Llama-3"), ("text_encoder2", "CLIP-L")]
)
def test_a_missing_encoder_is_named_with_its_option(encoders, option, name):
    with pytest.raises(ConfigError, match=f"{name} was not given. Set --{option}"):
        passes(encoders, **{option: None})


def test_exchanged_encoders_are_refused_before_any_weight_is_read(encoders):
    exchanged = {"text_encoder1": encoders["text_encoder2"], "text_encoder2": encoders["text_encoder1"]}
    with pytest.raises(BadFileError, match="is not a LLaMA text encoder"):
        passes(exchanged)


def test_a_tokenizer_of_the_wrong_model_is_refused(tmp_path, encoders):
    from tokenizers import Tokenizer, models

    folder = tmp_path / "other"
    folder.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(BadFileError, match=r"has 2 tokens, but the text encoder has .*--tokenizer1"):
        passes(encoders, tokenizer1=str(folder))[0].open()


def test_a_vocabulary_as_large_as_llama_3s_must_make_95_tokens_of_the_template(tmp_path):
    """A stand-in of the right size that forgets the begin token: 94."""
    from tokenizers import Tokenizer

    write_llama_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    missing = 128256 - tokenizer.get_vocab_size(with_added_tokens=True)
    tokenizer.add_tokens([f"<filler {number}>" for number in range(missing)])
    assert template_crop(tokenizer) == CROP
    tokenizer.post_processor = None
    with pytest.raises(BadFileError, match=r"makes 94 tokens .* expected 95"):
        template_crop(tokenizer)


def test_planning_opens_no_encoder(encoders, monkeypatch):
    from musubi_core.encoders import loading

    monkeypatch.setattr(loading, "fill", lambda *_, **__: pytest.fail("weights were read"))
    assert len(passes(encoders)) == 2
