"""The language half of a LLaMA-3 checkpoint as a source of hidden states, without the layers nobody asks for.

Legend: B captions, L tokens, D hidden size, V rows of the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill, prefix_before
from musubi_core.encoders.model_config import read_model_config
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError, MissingLibraryError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.quantization.fp8 import FP8, to_fp8
from musubi_core.quantization.fp8_linear import use_fp8_linears

if TYPE_CHECKING:
    from transformers import LlamaModel

EMBEDDING = "embed_tokens.weight"
HEAD, EPS, THETA = 128, 1e-5, 500_000.0  # of LLaMA-3, where a file does not say
POSITIONS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSizes:
    """What a checkpoint holds. `rows` is V; `layers` counts all of them."""

    rows: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    eps: float
    theta: float


def read_llama_sizes(path: Path) -> LlamaSizes:
    """Sizes from the shapes in a file or folder; what shapes cannot tell comes from its config.json, if any.

    Raises BadFileError if it is no LLaMA.
    """
    with open_checkpoint(path) as checkpoint:
        return _sizes(checkpoint, _sources(checkpoint), read_model_config(path))


def open_llama(
    path: Path, *, device: torch.device, dtype: torch.dtype, fp8: bool = False, skip: int = 2
) -> LlamaModel:
    """The model up to the layer before the last `skip`, without the final norm.

    Its output is `hidden_states[-1 - skip]` of the whole model. fp8: weights of linear layers are kept as
    e4m3fn; embedding and norms stay in `dtype`, which is also what is calculated in.
    """
    with open_checkpoint(path) as checkpoint:
        sources = _sources(checkpoint)
        sizes = _sizes(checkpoint, sources, read_model_config(path))
        if sizes.layers <= skip:
            raise BadFileError(f"{path} has {sizes.layers} layers; at least {skip + 1} are needed.")
        model = _empty_llama(sizes, layers=sizes.layers - skip)
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        used = {name: source for name, source in sources.items() if _layer(name) < sizes.layers - skip}
        stored = {name: checkpoint.header[source] for name, source in used.items()}
        check_names(wanted, stored, path=path, what="LLaMA")

        def dtype_of(name: str) -> torch.dtype:
            return FP8 if fp8 and name.endswith("_proj.weight") else dtype

        fill(model, checkpoint, used, device=device, dtype_of=dtype_of, cast=_cast)
    use_fp8_linears(model)
    return model


@torch.no_grad()
def hidden_states(model: LlamaModel, ids: Tensor, mask: Tensor) -> Tensor:
    """ids, mask: (B, L) int64, padded on the right, mask 1 for real tokens -> (B, L, D).

    Rows of padding hold numbers without meaning.
    """
    device = model.embed_tokens.weight.device
    output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    states: Tensor = output.last_hidden_state
    return states


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return to_fp8(tensor) if dtype == FP8 else tensor.to(dtype)


def _sources(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in LlamaModel -> name in the file, of embedding and layers.

    Everything else is dropped: head, final norm, vision tower, projector, tokenizer, rotary tables.
    """
    names = without_helpers(checkpoint.header)
    prefix = prefix_before(names, EMBEDDING)
    if prefix is None:
        first = ", ".join(names[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not a LLaMA text encoder: none of its {len(names)} tensors is named "
            f"{EMBEDDING} (first: {first}). Expected llava_llama3_fp16.safetensors or a Hugging Face folder."
        )
    own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {
        short: name
        for short, name in own.items()
        if (short == EMBEDDING or short.startswith("layers.")) and not short.endswith("rotary_emb.inv_freq")
    }


def _layer(name: str) -> int:
    """The number in "layers.N.", -1 for the embedding."""
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def _sizes(checkpoint: Checkpoint, sources: Mapping[str, str], config: Mapping[str, Any]) -> LlamaSizes:
    def rows_columns(name: str) -> tuple[int, ...]:
        if name not in sources:
            raise BadFileError(
                f"{checkpoint.path} is not a LLaMA text encoder: it has {EMBEDDING} but lacks {name}. "
                "Expected llava_llama3_fp16.safetensors or a Hugging Face folder."
            )
        return checkpoint.header[sources[name]].shape

    rows, hidden = rows_columns(EMBEDDING)
    head = _head_size(config, hidden)
    return LlamaSizes(
        rows=rows,
        hidden=hidden,
        mlp=rows_columns("layers.0.mlp.gate_proj.weight")[0],
        layers=1 + max(_layer(name) for name in sources),
        heads=rows_columns("layers.0.self_attn.q_proj.weight")[0] // head,
        kv_heads=rows_columns("layers.0.self_attn.k_proj.weight")[0] // head,
        head=head,
        eps=float(config.get("rms_norm_eps", EPS)),
        theta=_rope_theta(config, checkpoint.path),
    )


def _head_size(config: Mapping[str, Any], hidden: int) -> int:
    if config.get("head_dim"):
        return int(config["head_dim"])
    heads = config.get("num_attention_heads")
    return hidden // int(heads) if heads else HEAD


def _rope_theta(config: Mapping[str, Any], path: Path) -> float:
    """The base of the rotary frequencies; older configs name it at the top, newer ones in a table."""
    table = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = table.get("rope_type", table.get("type", "default"))
    if kind != "default":
        raise BadFileError(
            f"{path}/config.json asks for rotary positions of type {kind!r}; LLaVA-Llama-3 has plain ones. "
            "Check that it is the right model."
        )
    return float(table.get("rope_theta", config.get("rope_theta", THETA)))


def _empty_llama(sizes: LlamaSizes, *, layers: int) -> LlamaModel:
    def build() -> LlamaModel:
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            vocab_size=sizes.rows,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.mlp,
            num_hidden_layers=layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head,
            rms_norm_eps=sizes.eps,
            rope_theta=sizes.theta,
            max_position_embeddings=POSITIONS,
            attn_implementation="sdpa",
        )
        return LlamaModel(config)

    model = empty(build)
    model.norm = nn.Identity()
    _check_rotary(model.rotary_emb.inv_freq, sizes)
    return model


def _check_rotary(frequencies: Tensor, sizes: LlamaSizes) -> None:
    """transformers moved the rotary settings between versions; a silent default would spoil every caption."""
    exponents = torch.arange(0, sizes.head, 2, dtype=torch.float64) / sizes.head
    expected = sizes.theta**-exponents
    if frequencies.shape != expected.shape or not torch.allclose(frequencies.double(), expected, rtol=1e-5):
        import transformers

        raise MissingLibraryError(
            f"transformers {transformers.__version__} builds LLaMA with other rotary frequencies than asked "
            f"for (base {sizes.theta:g}). Install a version that this program was tested with: 4.50.3 to 5.x."
        )
