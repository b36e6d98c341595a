"""Captions become what the official pipeline makes of them: cleaned, cut, encoded, padding left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.config import ConfigError
from musubi_core.errors import BadFileError
from musubi_core.models.spec import EncoderRequest
from musubi_core.models.wan.captions import clean
from musubi_core.models.wan.options import TextOptions
from musubi_core.models.wan.text import texts
from musubi_core.models.wan.tiny import write_tiny

CPU = torch.device("cpu")
CAPTIONS = ("a photograph of a cat", "", "two  “dogs” &amp;amp; 東京", "a dog " * 400)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("wan"), 0).options["t5"]


@pytest.fixture(scope="module")
def expected(t5):
    """By transformers' whole model and the SentencePiece library, at the full length of 512."""
    import sentencepiece
    from transformers import UMT5Config, UMT5EncoderModel

    stored = load_file(t5)
    library = sentencepiece.SentencePieceProcessor(model_proto=stored.pop("spiece_model").numpy().tobytes())
    weights = {name: tensor.float() for name, tensor in stored.items()}
    rows = len(weights["shared.weight"])
    config = UMT5Config(vocab_size=rows, d_model=64, d_kv=64, d_ff=128, num_layers=2, num_heads=2,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    model = UMT5EncoderModel(config).eval()
    model.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    found = []
    for caption in CAPTIONS:
        own = caption.replace("“", '"').replace("”", '"').replace("&amp;amp;", "&").replace("  ", " ").strip()
        ids = [*library.encode(own)[:511], 1]
        padded = torch.tensor([ids + [0] * (512 - len(ids))])
        with torch.no_grad():
            states = model(input_ids=padded, attention_mask=(torch.arange(512) < len(ids))[None].long())
        found.append(states.last_hidden_state[0, : len(ids)])
    return found


def request(t5, dtype=torch.float32, **options) -> EncoderRequest:
    return EncoderRequest(device=CPU, dtype=dtype, options=TextOptions(t5=t5, **options))


def encode(t5, captions=CAPTIONS, **options):
    (text_pass,) = texts(request(t5, **options))
    assert (text_pass.name, text_pass.tensors) == ("t5", ("varlen_t5",))
    return [item["varlen_t5"] for item in text_pass.open()(captions)]


def test_states_equal_those_of_the_official_pipeline(t5, expected):
    for found, wanted in zip(encode(t5), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert [len(item) for item in expected][1::2] == [1, 512], "the empty caption, and the longest"


def test_states_are_bfloat16_unless_asked_otherwise(t5):
    assert encode(t5, dtype=None)[0].dtype == torch.bfloat16


def test_the_official_torch_file_with_its_tokenizer_beside_it_gives_the_same(tmp_path, t5):
    stored = load_file(t5)
    model = stored.pop("spiece_model").numpy().tobytes()
    names = {
        "shared.": "token_embedding.",
        "encoder.final_layer_norm.": "norm.",
        "encoder.block.": "blocks.",
        ".layer.0.SelfAttention.relative_attention_bias.": ".pos_embedding.embedding.",
        ".layer.0.SelfAttention.": ".attn.",
        ".layer.0.layer_norm.": ".norm1.",
        ".layer.1.layer_norm.": ".norm2.",
        ".layer.1.DenseReluDense.wi_0.": ".ffn.gate.0.",
        ".layer.1.DenseReluDense.wi_1.": ".ffn.fc1.",
        ".layer.1.DenseReluDense.wo.": ".ffn.fc2.",
    }
    renamed = {}
    for name, tensor in stored.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(renamed, path)
    beside = tmp_path / "google" / "umt5-xxl"
    beside.mkdir(parents=True)
    (beside / "spiece.model").write_bytes(model)
    for found, wanted in zip(encode(path), encode(t5), strict=True):
        assert torch.equal(found, wanted)


def test_fp8_stays_close_and_is_another_setting(t5):
    plain, small = (texts(request(t5, fp8_t5=fp8))[0].settings for fp8 in (False, True))
    assert plain != small
    for found, wanted in zip(encode(t5, fp8_t5=True), encode(t5), strict=True):
        assert 0 < (found - wanted).norm() / wanted.norm() < 0.1


def test_a_tokenizer_of_another_model_is_refused(tmp_path, t5):
    from musubi_core.encoders.tiny_tokenizers import write_clip_tokenizer

    write_clip_tokenizer(tmp_path / "clip")
    with pytest.raises(BadFileError, match=r"do not belong together\. Set --tokenizer .*google/umt5-xxl"):
        encode(t5, tokenizer=str(tmp_path / "clip"))


def test_without_a_tokenizer_or_a_network_the_files_to_get_are_named(tmp_path, t5, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bare = tmp_path / "umt5.safetensors"
    save_file({name: tensor for name, tensor in load_file(t5).items() if name != "spiece_model"}, bare)
    with pytest.raises(BadFileError, match=r"google/umt5-xxl/resolve/main/tokenizer\.json.*set --tokenizer"):
        encode(bare)


def test_a_missing_option_names_the_files_to_get():
    with pytest.raises(ConfigError, match=r"--t5 to umt5_xxl_fp16\.safetensors"):
        texts(request(None))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("  a\n cat\t and　dog ", "a cat and dog"),
        ("“It’s” ‘fine’", "\"It's\" 'fine'"),
        ("a &lt;b&gt; &amp;lt;c&amp;gt; &amp;amp; d", "a <b> <c> & d"),
        ("cafe\u0301", "café"),
        ("", ""),
    ],
)
def test_cleaning(caption, expected):
    assert clean(caption) == expected


def test_cleaning_twice_changes_nothing_in_ordinary_captions():
    for caption in CAPTIONS:
        assert clean(clean(caption)) == clean(caption)
