"""A small tokenizer with LLaMA-3's special tokens, made without any download."""

from __future__ import annotations

from pathlib import Path

from musubi_core.encoders.tiny_tokenizers import WORDS, byte_pairs, frame, save_tokenizer
from musubi_core.models.hunyuan_video.text import TEMPLATE

LLAMA_BEGIN = "<|begin_of_text|>"
LLAMA_SPECIALS = (
    *(LLAMA_BEGIN, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<image>", "<pad>"),
)
# What LLaMA-3 takes for a word. Line feeds stay together, so the template ends in the same token whatever
# the caption begins with.
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_llama_tokenizer(folder: Path) -> int:
    """tokenizer.json with LLaMA-3's special tokens; how many tokens it has, the special ones last."""
    template = TEMPLATE
    for special in LLAMA_SPECIALS:
        template = template.replace(special, "\n")
    tokenizer = byte_pairs([template, WORDS], lowercase=False, words=LLAMA_WORDS)
    tokenizer.add_special_tokens(list(LLAMA_SPECIALS))
    frame(tokenizer, before=LLAMA_BEGIN)
    names = {"bos_token": LLAMA_BEGIN, "eos_token": "<|end_of_text|>", "pad_token": "<pad>"}
    return save_tokenizer(folder, tokenizer, names)
