"""Small tokenizers with the special tokens of the real ones, made without any download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from musubi_core.files.replace import write_json, write_text
from musubi_core.models.hunyuan_video.text import TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA_BEGIN = "<|begin_of_text|>"
LLAMA_SPECIALS = (
    *(LLAMA_BEGIN, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<image>", "<pad>"),
)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
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


def write_llama_tokenizer(folder: Path) -> int:
    """tokenizer.json with LLaMA-3's special tokens; how many tokens it has, the special ones last."""
    tokenizer = _trained(lowercase=False)
    tokenizer.add_special_tokens(list(LLAMA_SPECIALS))
    _frame(tokenizer, before=LLAMA_BEGIN)
    names = {"bos_token": LLAMA_BEGIN, "eos_token": "<|end_of_text|>", "pad_token": "<pad>"}
    return _save(folder, tokenizer, names)


def write_clip_tokenizer(folder: Path) -> int:
    """tokenizer.json in the manner of CLIP; how many tokens it has. Begin and end have the largest ids."""
    tokenizer = _trained(lowercase=True)
    tokenizer.add_special_tokens(list(CLIP_SPECIALS))
    begin, end = CLIP_SPECIALS
    _frame(tokenizer, before=begin, after=end)
    return _save(folder, tokenizer, {"bos_token": begin, "eos_token": end, "pad_token": end})


def _trained(*, lowercase: bool) -> Tokenizer:
    """Byte-level pair encoding learned from the prompt template and the list of words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LONGEST_VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    template = TEMPLATE
    for special in LLAMA_SPECIALS:
        template = template.replace(special, "\n")
    tokenizer.train_from_iterator([template, WORDS], trainer)
    return tokenizer


def _frame(tokenizer: Tokenizer, *, before: str, after: str = "") -> None:
    from tokenizers.processors import TemplateProcessing

    tokens = [token for token in (before, after) if token]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {after}".strip(),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def _save(folder: Path, tokenizer: Tokenizer, names: dict[str, str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **names},
    )
    return tokenizer.get_vocab_size(with_added_tokens=True)
