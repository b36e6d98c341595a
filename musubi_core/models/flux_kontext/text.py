"""Captions as FLUX.1 sees them: T5-XXL's states, and CLIP-L's pooled vector.

Legend: B captions, L = 512 tokens of T5, D its hidden size, P hidden size of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.device.precision import dtype_of
from musubi_core.encoders.precision import math_dtype
from musubi_core.encoders.t5 import open_t5, read_t5_sizes, t5_states
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, text_settings, token_ids
from musubi_core.files.digest import weights_identity
from musubi_core.models.clip_l import clip_l_pass
from musubi_core.models.flux_kontext.options import TextOptions
from musubi_core.models.spec import EncoderRequest, TextPass

Encode: TypeAlias = Callable[[Sequence[str]], list[dict[str, Tensor]]]

T5_TOKENS = 512
T5_TOKENIZER = "google-t5/t5-base"  # the vocabulary of every T5; T5-XXL's own page has no tokenizer.json
T5_PADS = ("<pad>",)


def texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    """The two passes over all captions, in order. Reads headers only; `open` loads an encoder."""
    options: TextOptions = request.options or TextOptions()
    options.check()
    dtype = request.dtype or dtype_of(options.text_encoder_dtype)
    assert options.text_encoder1 is not None and options.text_encoder2 is not None  # by check()
    return (
        _t5_pass(options.text_encoder1, options, request.device, dtype),
        clip_l_pass(
            options.text_encoder2,
            options.tokenizer2,
            device=request.device,
            dtype=dtype,
            sibling="tokenizer",
            name="clip_l",
            tensor="clip_l_pooler",
        ),
    )


def _t5_pass(path: Path, options: TextOptions, device: torch.device, dtype: torch.dtype) -> TextPass:
    sizes = read_t5_sizes(path)
    place = find_tokenizer(
        option="tokenizer1",
        given=options.tokenizer1,
        encoder=path,
        sibling="tokenizer_2",  # diffusers counts the other way round: its text_encoder_2 is T5
        hub=T5_TOKENIZER,
    )

    def open_encoder() -> Encode:
        tokenizer = open_tokenizer(place, rows=sizes.rows)
        model = open_t5(path, device=device, dtype=math_dtype(dtype, device), fp8=options.fp8_t5)

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            """Per caption t5_vec (L, D). Padding takes part, as it did when FLUX.1 was trained."""
            ids, _ = token_ids(tokenizer, captions, length=T5_TOKENS, pad=T5_PADS)
            return [{"t5_vec": state.clone()} for state in t5_states(model, ids).to("cpu", dtype)]

        return encode

    return TextPass(
        name="t5",
        tensors=("t5_vec",),
        identity=weights_identity(path),
        settings={"tokens": T5_TOKENS, "fp8": options.fp8_t5, **text_settings(place, dtype, device)},
        open=open_encoder,
    )
