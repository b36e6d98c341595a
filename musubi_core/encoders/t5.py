"""The encoder of T5 v1.1 as a source of text states.

Legend: B captions, L tokens, D hidden size, H width of all heads together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill, prefix_before
from musubi_core.encoders.model_config import read_model_config
from musubi_core.encoders.stored_scales import without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.quantization.fp8 import FP8, to_fp8
from musubi_core.quantization.fp8_linear import use_fp8_linears

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5Stack

ANCHOR = "block.0.layer.0.SelfAttention.q.weight"
BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
EMBEDDING = "embed_tokens.weight"
SHARED = "shared.weight"  # the same table under the name that a whole T5 has for it
DISTANCE, EPS = 128, 1e-6  # of every T5, where a file does not say
_LINEAR = re.compile(r".*\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi_0|wi_1|wo))\.weight")
WANTED = "t5xxl_fp16.safetensors, one of its fp8 files, or the folder text_encoder_2 of the FLUX.1 repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Sizes:
    """What a checkpoint holds. rows: of the token embedding; heads are `head` wide, whatever `hidden` is."""

    rows: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    head: int
    buckets: int
    distance: int
    eps: float


def read_t5_sizes(path: Path) -> T5Sizes:
    """Sizes from the shapes in a file or folder; what shapes cannot tell comes from its config.json, if any.

    Raises BadFileError if it is no encoder of T5 v1.1.
    """
    with open_checkpoint(path) as checkpoint:
        return _sizes(checkpoint, _sources(checkpoint), read_model_config(path))


def open_t5(path: Path, *, device: torch.device, dtype: torch.dtype, fp8: bool = False) -> T5Stack:
    """The encoder in a file or folder, ready to run.

    fp8: weights of linear layers are kept as e4m3fn; embedding, norms and position bias stay in `dtype`,
    which is also what is calculated in. float16 overflows in the real T5-XXL.
    """
    with open_checkpoint(path) as checkpoint:
        sources = _sources(checkpoint)
        model = _empty_t5(_sizes(checkpoint, sources, read_model_config(path)))
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        stored = {name: checkpoint.header[source] for name, source in sources.items()}
        check_names(wanted, stored, path=path, what="T5 encoder")

        fill_stack(model, checkpoint, sources, device=device, dtype=dtype, fp8=fp8)
    return model


def fill_stack(
    model: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
) -> None:
    """Load an empty T5Stack, in place. fp8: see `open_t5`."""

    def dtype_of(name: str) -> torch.dtype:
        return FP8 if fp8 and _LINEAR.fullmatch(name) else dtype

    fill(model, checkpoint, sources, device=device, dtype_of=dtype_of, cast=_cast)
    use_fp8_linears(model)
    if fp8:
        _hide_wo(model)


@torch.no_grad()
def t5_states(model: T5Stack, ids: Tensor) -> Tensor:
    """ids: (B, L) int64 -> (B, L, D). Every token attends to every token, padding included."""
    device = next(model.parameters()).device
    states: Tensor = model(input_ids=ids.to(device), attention_mask=None).last_hidden_state
    return states


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """To `dtype`; to e4m3fn without NaN for what is out of its range."""
    return to_fp8(tensor) if dtype == FP8 else tensor.to(dtype)


class HiddenWo(nn.Module):
    """A linear layer that does not show its weight.

    transformers casts what goes into a layer named `wo` to the dtype of its weight. That is meant for weights
    that are more precise than the rest; with 8 bits it would ruin the numbers. It leaves them alone when
    `weight` is no tensor.
    """

    weight = None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, in) -> (B, L, out)."""
        return self.linear(x)


def _hide_wo(model: nn.Module) -> None:
    """Put every layer named `wo` into a HiddenWo, in place. Load the weights first."""
    for parent in list(model.modules()):
        wo = getattr(parent, "wo", None)
        if isinstance(wo, nn.Module):
            parent.wo = HiddenWo(wo)


def _sources(checkpoint: Checkpoint) -> dict[str, str]:
    names = without_helpers(checkpoint.header)
    found = stack_names(names)
    if found is None:
        first = ", ".join(names[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not a T5 text encoder: none of its {len(names)} tensors is named "
            f"encoder.{ANCHOR} (first: {first}). Expected {WANTED}."
        )
    return found


def stack_names(names: Sequence[str]) -> dict[str, str] | None:
    """Name in T5Stack -> name in a file; None if there is no encoder of any T5.

    Decoder, head and the second copy of the embedding are dropped.
    """
    encoder = prefix_before([name for name in names if ".decoder." not in f".{name}"], ANCHOR)
    if encoder is None:
        return None
    own = {name.removeprefix(encoder): name for name in names if name.startswith(encoder)}
    shared = encoder.removesuffix("encoder.") + SHARED
    if EMBEDDING not in own and shared in names:
        own[EMBEDDING] = shared
    return {
        short: name
        for short, name in own.items()
        if short.startswith(("block.", "final_layer_norm.")) or short == EMBEDDING
    }


def _sizes(checkpoint: Checkpoint, sources: Mapping[str, str], config: Mapping[str, Any]) -> T5Sizes:
    try:
        return stack_sizes({name: checkpoint.header[source] for name, source in sources.items()}, config)
    except KeyError as error:
        raise BadFileError(
            f"{checkpoint.path} is not an encoder of T5 v1.1: it lacks {error.args[0]}. Expected {WANTED}."
        ) from None


def stack_sizes(header: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> T5Sizes:
    """Sizes from the shapes of T5Stack's tensors, and the rest from config.json, if any.

    Raises KeyError with the name of a tensor that is missing.
    """
    rows, hidden = header[EMBEDDING].shape
    buckets, heads = header[BIAS].shape
    numbers = [re.match(r"block\.(\d+)\.", name) for name in header]
    return T5Sizes(
        rows=rows,
        hidden=hidden,
        mlp=header["block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        layers=1 + max(int(number.group(1)) for number in numbers if number),
        heads=heads,
        head=header[ANCHOR].shape[0] // heads,
        buckets=buckets,
        distance=int(config.get("relative_attention_max_distance", DISTANCE)),
        eps=float(config.get("layer_norm_epsilon", EPS)),
    )


def t5_config(sizes: T5Sizes) -> dict[str, Any]:
    """Arguments of transformers' T5Config and UMT5Config."""
    return {
        "vocab_size": sizes.rows,
        "d_model": sizes.hidden,
        "d_kv": sizes.head,
        "d_ff": sizes.mlp,
        "num_layers": sizes.layers,
        "num_heads": sizes.heads,
        "relative_attention_num_buckets": sizes.buckets,
        "relative_attention_max_distance": sizes.distance,
        "layer_norm_epsilon": sizes.eps,
        "feed_forward_proj": "gated-gelu",
    }


def _empty_t5(sizes: T5Sizes) -> T5Stack:
    def build() -> T5Stack:
        from transformers import T5Config, T5EncoderModel

        # The stack alone: the whole model holds the embedding a second time under another name.
        return T5EncoderModel(T5Config(**t5_config(sizes))).encoder

    return empty(build)
