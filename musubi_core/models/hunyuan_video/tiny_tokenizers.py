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


def write_llama_tokenizer(folder: Path) -> int:
    """tokenizer.json with LLaMA-3's special tokens; how many tokens it has, the special ones last."""
    template = TEMPLATE
    for special in LLAMA_SPECIALS:
        template = template.replace(special, "\n")
    tokenizer = byte_pairs([template, WORDS], lowercase=False)
    tokenizer.add_special_tokens(list(LLAMA_SPECIALS))
    frame(tokenizer, before=LLAMA_BEGIN)
    names = {"bos_token": LLAMA_BEGIN, "eos_token": "<|end_of_text|>", "pad_token": "<pad>"}
    return save_tokenizer(folder, tokenizer, names)
