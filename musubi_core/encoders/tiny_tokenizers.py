"""Small tokenizers in the manner of the real ones, made without any download: for the demo and the tests."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.encoders.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, write_sentencepiece
from musubi_core.files.replace import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
T5_SPECIALS = ("<pad>", "</s>", "<unk>")  # their ids are 0, 1, 2, as in every T5
LONGEST_VOCABULARY = 1200
# Words of captions that become one token each; anything else is spelled in shorter pieces, down to bytes.
WORDS = (
    "a an the and or of in on at with from over under near beside behind between into through while is "
    "are was this that it its his her their one two three photo picture photograph video clip scene shot "
    "view close up wide portrait landscape camera pans tilts zooms moves slowly quickly left right top "
    "bottom background foreground man woman person people child face hair eyes hand hands cat dog bird "
    "horse animal tree trees forest flower flowers grass leaf leaves mountain river lake sea ocean beach "
    "sky cloud clouds sun sunset night day light dark bright shadow water fire snow rain city street road "
    "building house room table cup coffee car train rocket space moon stars red orange yellow green blue "
    "purple pink white black gray grey brown golden small large old young wearing holding standing "
    "sitting walking running looking smiling playing painting drawing style anime film cinematic "
    "realistic soft warm cold texture wooden metal glass stone brick wall window door"
)


def write_clip_tokenizer(folder: Path) -> int:
    """tokenizer.json in the manner of CLIP; how many tokens it has. Begin and end have the largest ids."""
    tokenizer = byte_pairs([WORDS], lowercase=True)
    tokenizer.add_special_tokens(list(CLIP_SPECIALS))
    begin, end = CLIP_SPECIALS
    frame(tokenizer, before=begin, after=end)
    return save_tokenizer(folder, tokenizer, {"bos_token": begin, "eos_token": end, "pad_token": end})


def write_t5_tokenizer(folder: Path) -> int:
    """tokenizer.json in the manner of T5, words with "▁" before them; how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = [(special, 0.0) for special in T5_SPECIALS] + _scored_pieces()
    tokenizer = Tokenizer(models.Unigram(vocabulary, T5_SPECIALS.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(T5_SPECIALS))
    frame(tokenizer, after="</s>")
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return save_tokenizer(folder, tokenizer, names)


def umt5_sentencepiece() -> tuple[bytes, int]:
    """The same pieces as a SentencePiece model, in the manner of UMT5's; how many tokens it has.

    What is no piece is spelled in bytes, each a token. Written by hand, as the library would write it.
    """
    named = [("<pad>", CONTROL), ("</s>", CONTROL), ("<s>", CONTROL), ("<unk>", UNKNOWN)]
    special = [(text, 0.0, kind) for text, kind in named]
    raw = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    own = [(text, score, NORMAL) for text, score in _scored_pieces()]
    return write_sentencepiece([*special, *raw, *own], byte_fallback=True), len(special) + len(raw) + len(own)


def _scored_pieces() -> list[tuple[str, float]]:
    """Words of captions, and letters, with their logarithmic frequency."""
    pieces = [f"▁{word}" for word in dict.fromkeys(WORDS.split())]
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    return [(text, -1.0) for text in pieces] + [(text, -10.0) for text in letters]


def byte_pairs(texts: Sequence[str], *, lowercase: bool, words: str | None = None) -> Tokenizer:
    """Byte-level pair encoding learned from `texts`.

    words: the regular expression of a word, which no token crosses; None is GPT-2's.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    if words is None:
        tokenizer.pre_tokenizer = byte_level
    else:
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LONGEST_VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    return tokenizer


def frame(tokenizer: Tokenizer, *, before: str = "", after: str = "") -> None:
    """Let every text begin and end with these special tokens."""
    from tokenizers.processors import TemplateProcessing

    tokens = [token for token in (before, after) if token]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {after}".strip(),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def save_tokenizer(folder: Path, tokenizer: Tokenizer, names: dict[str, str]) -> int:
    """Write tokenizer.json and tokenizer_config.json; how many tokens there are, the special ones too."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **names},
    )
    return tokenizer.get_vocab_size(with_added_tokens=True)
