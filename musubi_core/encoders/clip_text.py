"""CLIP's text model as a source of pooled captions.

Legend: B captions, L = 77 tokens, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill, prefix_before
from musubi_core.encoders.model_config import read_model_config
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from transformers import CLIPTextModel

EMBEDDING = "embeddings.token_embedding.weight"
PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
HEAD, EPS, ACTIVATION = 64, 1e-5, "quick_gelu"  # of CLIP-L, where a file does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSizes:
    """What a checkpoint holds. rows: of the token embedding; positions: the longest caption in tokens."""

    rows: int
    positions: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    eps: float
    activation: str


def read_clip_sizes(path: Path) -> ClipSizes:
    """Sizes from the shapes in a file or folder; what shapes cannot tell comes from its config.json, if any.

    Raises BadFileError if it is no CLIP text model.
    """
    with open_checkpoint(path) as checkpoint:
        return _sizes(checkpoint, _sources(checkpoint), read_model_config(path))


def open_clip_text(path: Path, *, device: torch.device, dtype: torch.dtype) -> CLIPTextModel:
    """The text model in a file or folder, ready to run."""
    with open_checkpoint(path) as checkpoint:
        sources = _sources(checkpoint)
        model = _empty_clip(_sizes(checkpoint, sources, read_model_config(path)))
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        prefix = prefix_before(wanted, EMBEDDING) or ""  # transformers 4 has "text_model.", 5 has none
        named = {prefix + short: name for short, name in sources.items()}
        stored = {name: checkpoint.header[source] for name, source in named.items()}
        check_names(wanted, stored, path=path, what="CLIP text model")
        fill(model, checkpoint, named, device=device, dtype_of=lambda name: dtype)
    return model


@torch.no_grad()
def pooled(model: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids: (B, L) int64, each row ending in the end token -> (B, D), the normed state at the first end token.

    Attention is causal, so what pads a row after its end token does not matter.
    """
    device = next(model.parameters()).device
    result: Tensor = model(input_ids=ids.to(device)).pooler_output
    return result


def _sources(checkpoint: Checkpoint) -> dict[str, str]:
    """Name without any prefix -> name in the file. Vision model, projections and scales are dropped."""
    names = without_helpers(checkpoint.header)
    prefix = prefix_before(names, EMBEDDING)
    if prefix is None:
        first = ", ".join(names[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not a CLIP text encoder: none of its {len(names)} tensors is named "
            f"{EMBEDDING} (first: {first}). Expected clip_l.safetensors or the folder of "
            "openai/clip-vit-large-patch14."
        )
    own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {
        short: name
        for short, name in own.items()
        if short.startswith(PARTS) and not short.endswith("position_ids")
    }


def _sizes(checkpoint: Checkpoint, sources: Mapping[str, str], config: Mapping[str, Any]) -> ClipSizes:
    def rows_columns(name: str) -> tuple[int, ...]:
        if name not in sources:
            raise BadFileError(
                f"{checkpoint.path} is not a CLIP text encoder: it has {EMBEDDING} but lacks {name}. "
                "Expected clip_l.safetensors or the folder of openai/clip-vit-large-patch14."
            )
        return checkpoint.header[sources[name]].shape

    rows, hidden = rows_columns(EMBEDDING)
    numbers = [re.match(r"encoder\.layers\.(\d+)\.", name) for name in sources]
    return ClipSizes(
        rows=rows,
        positions=rows_columns("embeddings.position_embedding.weight")[0],
        hidden=hidden,
        mlp=rows_columns("encoder.layers.0.mlp.fc1.weight")[0],
        layers=1 + max(int(number.group(1)) for number in numbers if number),
        heads=int(config.get("num_attention_heads") or max(1, hidden // HEAD)),
        eps=float(config.get("layer_norm_eps", EPS)),
        activation=str(config.get("hidden_act", ACTIVATION)),
    )


def _empty_clip(sizes: ClipSizes) -> CLIPTextModel:
    def build() -> CLIPTextModel:
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(
            vocab_size=sizes.rows,
            max_position_embeddings=sizes.positions,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.mlp,
            projection_dim=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            hidden_act=sizes.activation,
            layer_norm_eps=sizes.eps,
            # The last two ids, as CLIP's own vocabulary has them; pooling looks for the first end token.
            bos_token_id=sizes.rows - 2,
            eos_token_id=sizes.rows - 1,
            attn_implementation="sdpa",
        )
        return CLIPTextModel(config)

    return empty(build)
