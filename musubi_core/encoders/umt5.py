"""The encoder of UMT5 as a source of text states: T5 v1.1 with a position bias in every layer.

Legend: B captions, L tokens, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, prefix_before
from musubi_core.encoders.model_config import read_model_config
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.encoders.t5 import BIAS, EMBEDDING, T5Sizes, fill_stack, stack_names, stack_sizes, t5_config
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from transformers.models.umt5.modeling_umt5 import UMT5Stack

OFFICIAL_ANCHOR = "blocks.0.pos_embedding.embedding.weight"
_OFFICIAL = {  # what follows "blocks.N." in Wan-AI's file -> what follows "block.N.layer."
    **{f"attn.{part}": f"0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm1": "0.layer_norm",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}
_OFFICIAL_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")
_OFFICIAL_REST = {"token_embedding.weight": EMBEDDING, "norm.weight": "final_layer_norm.weight"}
WANTED = (
    "umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors (Comfy-Org), or "
    "models_t5_umt5-xxl-enc-bf16.pth (Wan-AI)"
)


def read_umt5_sizes(path: Path) -> T5Sizes:
    """Sizes from the shapes in a file or folder; what shapes cannot tell comes from its config.json, if any.

    Raises BadFileError if it is no encoder of UMT5.
    """
    with open_checkpoint(path) as checkpoint:
        return _sizes(checkpoint, _sources(checkpoint))


def open_umt5(path: Path, *, device: torch.device, dtype: torch.dtype, fp8: bool = False) -> UMT5Stack:
    """The encoder in a file or folder, ready to run.

    fp8: weights of linear layers are kept as e4m3fn; embedding, norms and position bias stay in `dtype`,
    which is also what is calculated in.
    """
    with open_checkpoint(path) as checkpoint:
        sources = _sources(checkpoint)
        model = _empty_umt5(_sizes(checkpoint, sources))
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        stored = {name: checkpoint.header[source] for name, source in sources.items()}
        check_names(wanted, stored, path=path, what="UMT5 encoder")
        fill_stack(model, checkpoint, sources, device=device, dtype=dtype, fp8=fp8)
    return model


@torch.no_grad()
def umt5_states(model: UMT5Stack, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """ids, mask: (B, L) int64, padded on the right, mask 1 for real tokens.

    Returns B tensors (length of the caption, D): no token attends to padding, so it may as well be left out.
    """
    device = next(model.parameters()).device
    lengths = mask.sum(1).tolist()
    longest = max(lengths)  # what is padding in all captions is not calculated
    output = model(input_ids=ids[:, :longest].to(device), attention_mask=mask[:, :longest].to(device))
    return [state[:length] for state, length in zip(output.last_hidden_state, lengths, strict=True)]


def _sources(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in UMT5Stack -> name in the file, of transformers' or of Wan-AI's naming."""
    names = without_helpers(checkpoint.header)
    found = stack_names(names) or _official_names(names)
    if found is None:
        first = ", ".join(names[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not a UMT5 text encoder: none of its {len(names)} tensors is a block of "
            f"it (first: {first}). Expected {WANTED}."
        )
    if BIAS.replace("block.0", "block.1") not in found:
        raise BadFileError(
            f"{checkpoint.path} is a T5 whose position bias is in its first layer only; UMT5 has one in "
            f"every layer. Expected {WANTED}."
        )
    return found


def _official_names(names: Sequence[str]) -> dict[str, str] | None:
    prefix = prefix_before(names, OFFICIAL_ANCHOR)
    if prefix is None:
        return None
    own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {_official_name(short): name for short, name in own.items()}


def _official_name(short: str) -> str:
    """ "blocks.0.attn.q.weight" -> "block.0.layer.0.SelfAttention.q.weight"; unknown names stay."""
    block = _OFFICIAL_BLOCK.fullmatch(short)
    if block is None or block.group(2) not in _OFFICIAL:
        return _OFFICIAL_REST.get(short, short)
    return f"block.{block.group(1)}.layer.{_OFFICIAL[block.group(2)]}.weight"


def _sizes(checkpoint: Checkpoint, sources: dict[str, str]) -> T5Sizes:
    header = {name: checkpoint.header[source] for name, source in sources.items()}
    try:
        return stack_sizes(header, read_model_config(checkpoint.path))
    except KeyError as error:
        raise BadFileError(
            f"{checkpoint.path} is not a whole encoder of UMT5: it lacks {error.args[0]}. Expected {WANTED}."
        ) from None


def _empty_umt5(sizes: T5Sizes) -> UMT5Stack:
    def build() -> UMT5Stack:
        from transformers import UMT5Config, UMT5EncoderModel

        # The stack alone: the whole model holds the embedding a second time under another name.
        return UMT5EncoderModel(UMT5Config(**t5_config(sizes))).encoder

    return empty(build)
