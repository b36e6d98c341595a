"""Captions as Wan sees them: UMT5-XXL's states of the caption's own tokens, padding left out.

Legend: B captions, L tokens of a caption, at most 512, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.encoders.precision import math_dtype
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, text_settings, token_ids
from musubi_core.encoders.umt5 import open_umt5, read_umt5_sizes, umt5_states
from musubi_core.files.digest import weights_identity
from musubi_core.models.spec import EncoderRequest, TextPass
from musubi_core.models.wan.captions import clean
from musubi_core.models.wan.options import TextOptions

Encode: TypeAlias = Callable[[Sequence[str]], list[dict[str, Tensor]]]

TOKENS = 512
CLEANING = 1  # raise it when `clean` changes
HUB = "google/umt5-xxl"  # also the folder's name beside the official .pth
PADS = ("<pad>",)


def texts(request: EncoderRequest) -> tuple[TextPass, ...]:
    """The one pass over all captions. Reads headers only; `open` loads the encoder."""
    options: TextOptions = request.options or TextOptions()
    options.check()
    path = options.t5
    assert path is not None  # by check()
    dtype = request.dtype or torch.bfloat16
    math = math_dtype(dtype, request.device)
    sizes = read_umt5_sizes(path)
    place = find_tokenizer(
        option="tokenizer",
        given=options.tokenizer,
        encoder=path,
        sibling="tokenizer",
        hub=HUB,
        beside=HUB,
    )

    def open_encoder() -> Encode:
        tokenizer = open_tokenizer(place, rows=sizes.rows)
        model = open_umt5(path, device=request.device, dtype=math, fp8=options.fp8_t5)

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            """Per caption varlen_t5 (L, D), the end token's state last."""
            cleaned = [clean(caption) for caption in captions]
            ids, mask = token_ids(tokenizer, cleaned, length=TOKENS, pad=PADS)
            states = umt5_states(model, ids, mask)
            return [{"varlen_t5": state.to("cpu", dtype).clone()} for state in states]

        return encode

    settings = {
        "tokens": TOKENS,
        "cleaning": CLEANING,
        "fp8": options.fp8_t5,
        **text_settings(place, dtype, request.device),
    }
    return (
        TextPass(
            name="t5",
            tensors=("varlen_t5",),
            identity=weights_identity(path),
            settings=settings,
            open=open_encoder,
        ),
    )
