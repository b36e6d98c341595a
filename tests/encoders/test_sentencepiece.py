"""SentencePiece models give the ids that the SentencePiece library gives; damaged ones are named."""

from __future__ import annotations

import contextlib
import io
import random

import pytest
import torch
from safetensors.torch import save_file

from musubi_core.encoders.sentencepiece import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    read_sentencepiece,
    write_sentencepiece,
)
from musubi_core.encoders.sentencepiece import sentencepiece_tokenizer as tokenizer_of
from musubi_core.encoders.tiny_tokenizers import WORDS, umt5_sentencepiece
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, token_ids
from musubi_core.errors import BadFileError

ODD = [
    "",
    "naïve café 東京 🚀",
    "ｆｕｌｌ　width ﬁne",
    "a  b   c",
    "  before and behind  ",
    "tab\tnew\nline",
    "don't “quote” ’s",
    "e\u0301 \u200bzero\u00adwidth",
    "flower" * 40,
]


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS.split(), k=12)) for _ in range(count)]


@pytest.fixture(scope="module", params=[("nmt_nfkc", True), ("identity", False)], ids=["umt5", "plain"])
def trained(request) -> bytes:
    """A model made by the library's own trainer; characters normalised and bytes, or neither."""
    import sentencepiece

    rule, byte_fallback = request.param
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300)),
        model_writer=out,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="unigram",
        byte_fallback=byte_fallback,
        normalization_rule_name=rule,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return out.getvalue()


def library_ids(model: bytes, text: str) -> list[int]:
    import sentencepiece

    return [*sentencepiece.SentencePieceProcessor(model_proto=model).encode(text), 1]


def test_ids_equal_those_of_the_library_and_end_with_the_end_token(trained):
    tokenizer = tokenizer_of(trained, where="spiece.model")
    for text in (*sentences(40), *ODD):
        assert tokenizer.encode(text).ids == library_ids(trained, text), text


def test_the_library_reads_what_we_write():
    model, tokens = umt5_sentencepiece()
    tokenizer = tokenizer_of(model, where="tiny")
    assert tokenizer.get_vocab_size(with_added_tokens=True) == tokens
    for text in ("a photograph of a cat", "Zebra, 東京!", ""):
        assert tokenizer.encode(text).ids == library_ids(model, text), text


def test_long_captions_are_cut_and_still_end_with_the_end_token(trained):
    ids, mask = token_ids(tokenizer_of(trained, where="x"), ["cat " * 60, "cat"], length=20, pad=("<pad>",))
    assert ids.shape == (2, 20)
    assert ids[0, -1] == 1 and mask[0].sum() == 20
    assert ids[1, mask[1].sum() - 1] == 1 and set(ids[1, mask[1].sum() :].tolist()) == {0}


def test_a_tokenizer_inside_the_encoders_file_comes_before_what_lies_beside_it(tmp_path):
    model, tokens = umt5_sentencepiece()
    packed = tmp_path / "umt5_xxl_fp16.safetensors"
    save_file({"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}, packed)
    beside = tmp_path / "google" / "umt5-xxl"
    beside.mkdir(parents=True)
    (beside / "spiece.model").write_bytes(model)
    bare = tmp_path / "models_t5.safetensors"
    save_file({"norm.weight": torch.zeros(1)}, bare)

    def find(encoder, given=None):
        return find_tokenizer(
            option="tokenizer",
            given=given,
            encoder=encoder,
            sibling="tokenizer",
            hub="google/umt5-xxl",
            beside="google/umt5-xxl",
        )

    inside, outside = find(packed), find(bare)
    assert (inside.packed, inside.folder) == (packed, None)
    assert (outside.packed, outside.folder) == (None, beside)
    assert find(packed, str(beside / "spiece.model")).folder == beside
    assert inside.identity() == outside.identity()
    for place in (inside, outside):
        assert open_tokenizer(place, rows=tokens).encode("a cat").ids == library_ids(model, "a cat")


PIECES = [("<unk>", 0.0, UNKNOWN), ("</s>", 0.0, CONTROL), ("▁a", -1.0, NORMAL)]


def test_a_damaged_model_is_named():
    whole = write_sentencepiece(PIECES, byte_fallback=False)
    for broken in (whole[:-3], whole[: len(whole) // 2], b"", b"\xff" * 40, b"{}"):
        with pytest.raises(BadFileError, match=r"spiece\.model is not a whole SentencePiece model"):
            tokenizer_of(broken, where="spiece.model")


def test_any_cut_or_changed_byte_gives_a_tokenizer_or_our_error():
    whole, _ = umt5_sentencepiece()
    draw = random.Random(1)
    for _ in range(200):
        bad = bytearray(whole[:400])
        bad[draw.randrange(len(bad))] = draw.randrange(256)
        with contextlib.suppress(BadFileError):
            read_sentencepiece(bytes(bad), where="x")


def test_a_model_of_another_kind_is_refused():
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(50)),
        model_writer=out,
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(BadFileError, match="expected a unigram model"):
        tokenizer_of(out.getvalue(), where="llama")


def test_a_model_without_an_end_token_is_no_t5s():
    with pytest.raises(BadFileError, match="not the tokenizer of a T5"):
        tokenizer_of(write_sentencepiece(PIECES[:1], byte_fallback=False), where="x")
