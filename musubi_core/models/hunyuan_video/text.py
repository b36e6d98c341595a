"""Captions as HunyuanVideo sees them: LLaVA-Llama-3's states, and CLIP-L's pooled vector.

Legend: B captions, L = 256 tokens of LLaMA, D its hidden size, P hidden size of CLIP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.llama import hidden_states, open_llama, read_llama_sizes
from musubi_core.encoders.precision import math_dtype
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, text_settings, token_ids
from musubi_core.errors import BadFileError
from musubi_core.files.digest import weights_identity
from musubi_core.models.clip_l import clip_l_pass
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
LLM_TOKENS = 256
SKIPPED_LAYERS = 2  # the states wanted are those before the last two layers
LLAMA3_TOKENS, LLAMA3_CROP = 128256, 95  # the real vocabulary, and what the template takes of it
LLM_TOKENIZER = "xtuner/llava-llama-3-8b-v1_1-transformers"
LLM_PADS = ("<pad>", "<|end_of_text|>")


def texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    """The two passes over all captions, in order. Reads headers only; `open` loads an encoder."""
    options: TextOptions = request.options or TextOptions()
    options.check()
    dtype = request.dtype or dtype_of(options.text_encoder_dtype)
    assert options.text_encoder1 is not None and options.text_encoder2 is not None  # by check()
    return (
        _llm_pass(options.text_encoder1, options, request.device, dtype),
        clip_l_pass(
            options.text_encoder2,
            options.tokenizer2,
            device=request.device,
            dtype=dtype,
            sibling="tokenizer_2",
            name="clipL",
            tensor="clipL",
            mask="clipL_mask",
        ),
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
        **text_settings(place, dtype, device),
    }
    return TextPass(
        name="llm",
        tensors=("llm", "llm_mask"),
        identity=weights_identity(path),
        settings=settings,
        open=open_encoder,
    )
