"""The pass over all captions with CLIP-L, which several architectures share.

Legend: B captions, P hidden size of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.encoders.clip_text import open_clip_text, pooled, read_clip_sizes
from musubi_core.encoders.precision import math_dtype
from musubi_core.encoders.tokenizer import find_tokenizer, open_tokenizer, text_settings, token_ids
from musubi_core.errors import BadFileError
from musubi_core.files.digest import weights_identity
from musubi_core.models.spec import TextPass

TOKENS = 77
TOKENIZER = "openai/clip-vit-large-patch14"
PADS = ("<|endoftext|>",)


def clip_l_pass(
    path: Path,
    tokenizer: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    sibling: str,
    name: str,
    tensor: str,
    mask: str = "",
) -> TextPass:
    """Per caption `tensor` (P), the pooled state, and `mask` (77) int64 where it has a name.

    sibling: diffusers' folder of the tokenizer beside this encoder. Raises BadFileError for another encoder.
    """
    sizes = read_clip_sizes(path)
    if sizes.positions != TOKENS:
        raise BadFileError(
            f"{path} is a text encoder for {sizes.positions} tokens; CLIP-L has {TOKENS}. Check that it is "
            "the right file."
        )
    place = find_tokenizer(option="tokenizer2", given=tokenizer, encoder=path, sibling=sibling, hub=TOKENIZER)

    def open_encoder() -> Callable[[Sequence[str]], list[dict[str, Tensor]]]:
        tokens = open_tokenizer(place, rows=sizes.rows)
        model = open_clip_text(path, device=device, dtype=math_dtype(dtype, device))

        def encode(captions: Sequence[str]) -> list[dict[str, Tensor]]:
            ids, masks = token_ids(tokens, captions, length=TOKENS, pad=PADS)
            vectors = pooled(model, ids).to("cpu", dtype)
            return [
                {tensor: vector.clone()} | ({mask: row.clone()} if mask else {})
                for vector, row in zip(vectors, masks, strict=True)
            ]

        return encode

    return TextPass(
        name=name,
        tensors=(tensor, mask) if mask else (tensor,),
        identity=weights_identity(path),
        settings={"tokens": TOKENS, **text_settings(place, dtype, device)},
        open=open_encoder,
    )
