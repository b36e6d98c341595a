"""Captions as HunyuanVideo sees them: LLaVA-Llama-3's states, and CLIP-L's pooled vector.

Legend: B captions, L = 256 tokens of LLaMA, D its hidden size, P hidden size of CLIP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.clip_text import open_clip_text, pooled, read_clip_sizes
from musubi_core.encoders.llama import hidden_states, open_llama, read_llama_sizes
from musubi_core.encoders.precision import dtype_name, math_dtype
from musubi_core.encoders.tokenizer import TokenizerPlace, find_tokenizer, open_tokenizer, token_ids
from musubi_core.errors import BadFileError
from musubi_core.files.digest import weights_identity
from musubi_core.models.hunyuan_video.options import TextOptions
from musubi_core.models.spec import EncoderRequest, TextPass

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode: TypeAlias = Callable[[Sequence[str]], list[dict[str, Tensor]]]

# Tencent's prompt template for video; `{}` is the caption. It is part of the model.
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
LLM_TOKENS, CLIP_TOKENS = 256, 77
SKIPPED_LAYERS = 2  # the states wanted are those before the last two layers
LLAMA3_TOKENS, LLAMA3_CROP = 128256, 95  # the real vocabulary, and what the template takes of it
LLM_TOKENIZER = "xtuner/llava-llama-3-8b-v1_1-transformers"
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
LLM_PADS, CLIP_PADS = ("<pad>", "<|end_of_text|>"), ("<|endoftext|>",)


def texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    """The two passes over all captions, in order. Reads headers only; `open` loads an encoder."""
    options: TextOptions = request.options or TextOptions()
    options.check()
    dtype = request.dtype or dtype_of(options.text_encoder_dtype)
    assert options.text_encoder1 is not None and options.text_encoder2 is not None  # by check()
    return (
        _llm_pass(options.text_encoder1, options, request.device, dtype),
        _clip_pass(options.text_encoder2, options, request.device, dtype),
    )


def template_crop(tokenizer: Tokenizer) -> int:
    """How many tokens stand before the caption, the begin token included.

    Raises BadFileError if the vocabulary has LLaMA-3's size and the count is not the one the model knows.
    """
    before = TEMPLATE.partition("{}")[0]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count = len(tokenizer.encode(before).ids)
    if tokenizer.get_vocab_size(with_added_tokens=True) >= LLAMA3_TOKENS and count != LLAMA3_CROP:
        raise BadFileError(
            f"The tokenizer makes {count} tokens of the prompt template, expected {LLAMA3_CROP}: it is not "
            f"LLaMA-3's. Set --tokenizer1 to the one of {LLM_TOKENIZER}."
        )
    return count


def _llm_pass(path: Path, options: TextOptions, device: torch.device, dtype: torch.dtype) -> TextPass:
    sizes = read_llama_sizes(path)
    place = find_tokenizer(
        option="tokenizer1",
        given=options.tokenizer1,
        encoder=path,
        sibling="tokenizer",
        hub=LLM_TOKENIZER,
    )

    def open_encoder() -> Encode:
        tokenizer = open_tokenizer(place, rows=sizes.rows)
        crop = template_crop(tokenizer)
        math = math_dtype(dtype, device)
        model = open_llama(path, device=device, dtype=math, fp8=options.fp8_llm, skip=SKIPPED_LAYERS)

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            """Per caption llm (L, D) and llm_mask (L) int64; masked rows hold numbers without meaning."""
            prompts = [TEMPLATE.replace("{}", caption) for caption in captions]
            ids, mask = token_ids(tokenizer, prompts, length=crop + LLM_TOKENS, pad=LLM_PADS)
            states = hidden_states(model, ids, mask)[:, crop:].to("cpu", dtype)
            return [
                {"llm": state.contiguous(), "llm_mask": row.clone()}
                for state, row in zip(states, mask[:, crop:], strict=True)
            ]

        return encode

    settings = {
        "template": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        "tokens": LLM_TOKENS,
        "skipped_layers": SKIPPED_LAYERS,
        "fp8": options.fp8_llm,
        **_common_settings(place, dtype, device),
    }
    return TextPass(
        name="llm",
        tensors=("llm", "llm_mask"),
        identity=weights_identity(path),
        settings=settings,
        open=open_encoder,
    )


def _clip_pass(path: Path, options: TextOptions, device: torch.device, dtype: torch.dtype) -> TextPass:
    sizes = read_clip_sizes(path)
    if sizes.positions != CLIP_TOKENS:
        raise BadFileError(
            f"{path} is a text encoder for {sizes.positions} tokens; CLIP-L has {CLIP_TOKENS}. Check that it "
            "is the right file."
        )
    place = find_tokenizer(
        option="tokenizer2",
        given=options.tokenizer2,
        encoder=path,
        sibling="tokenizer_2",
        hub=CLIP_TOKENIZER,
    )

    def open_encoder() -> Encode:
        tokenizer = open_tokenizer(place, rows=sizes.rows)
        model = open_clip_text(path, device=device, dtype=math_dtype(dtype, device))

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            """Per caption clipL (P) and clipL_mask (77) int64."""
            ids, mask = token_ids(tokenizer, captions, length=CLIP_TOKENS, pad=CLIP_PADS)
            vectors = pooled(model, ids).to("cpu", dtype)
            return [
                {"clipL": vector.clone(), "clipL_mask": row.clone()}
                for vector, row in zip(vectors, mask, strict=True)
            ]

        return encode

    return TextPass(
        name="clipL",
        tensors=("clipL", "clipL_mask"),
        identity=weights_identity(path),
        settings={"tokens": CLIP_TOKENS, **_common_settings(place, dtype, device)},
        open=open_encoder,
    )


def _common_settings(place: TokenizerPlace, dtype: torch.dtype, device: torch.device) -> Mapping[str, Any]:
    return {
        "tokenizer": place.identity(),
        "dtype": dtype_name(dtype),
        "math": dtype_name(math_dtype(dtype, device)),
    }
