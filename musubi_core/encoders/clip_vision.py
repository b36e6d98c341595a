"""CLIP's image model as a source of picture features, without the last layer, which nobody asks for.

Legend: B pictures, P patches + 1, D hidden size.
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
from musubi_core.files.tensor_info import TensorInfo

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

CLASS = "embeddings.class_embedding"
OPEN_CLIP_CLASS = "cls_embedding"  # OpenCLIP's file as Wan-AI publishes it
PATCH = "embeddings.patch_embedding.weight"
POSITIONS = "embeddings.position_embedding.weight"
PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
HEAD, EPS, ACTIVATION = 80, 1e-5, "gelu"  # of ViT-H, where a file does not say
QKV = "attn.to_qkv."
_OPEN_CLIP = (
    ("patch_embedding.", "embeddings.patch_embedding."),
    ("pos_embedding", POSITIONS),
    (OPEN_CLIP_CLASS, CLASS),
    ("pre_norm.", "pre_layrnorm."),
    ("post_norm.", "post_layernorm."),
    ("transformer.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.out_proj."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
)
WANTED = (
    "clip_vision_h.safetensors (Comfy-Org/Wan_2.1_ComfyUI_repackaged) or "
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth (Wan-AI)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipVisionSizes:
    """What a checkpoint holds. image: pixels per side of the square it looks at; `layers` counts all."""

    image: int
    patch: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    eps: float
    activation: str


def read_clip_vision_sizes(path: Path) -> ClipVisionSizes:
    """Sizes from the shapes in a file or folder; what shapes cannot tell comes from its config.json, if any.

    Raises BadFileError if it is no CLIP image model.
    """
    with open_checkpoint(path) as checkpoint:
        return _sizes(checkpoint, _sources(checkpoint), _config(path))


def open_clip_vision(
    path: Path, *, device: torch.device, dtype: torch.dtype, skip: int = 1
) -> CLIPVisionModel:
    """The model up to the layer before the last `skip`: its output is `hidden_states[-1 - skip]`."""
    with open_checkpoint(path) as checkpoint:
        sources = _sources(checkpoint)
        sizes = _sizes(checkpoint, sources, _config(path))
        if sizes.layers <= skip:
            raise BadFileError(f"{path} has {sizes.layers} layers; at least {skip + 1} are needed.")
        model = _empty_clip_vision(sizes, layers=sizes.layers - skip)
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        prefix = prefix_before(wanted, CLASS) or ""  # transformers 4 has "vision_model.", 5 has none
        used = {short: name for short, name in sources.items() if _layer(short) < sizes.layers - skip}
        stored = {
            prefix + short: _unpacked(short, name, checkpoint.header[name]) for short, name in used.items()
        }
        check_names(wanted, stored, path=path, what="CLIP image encoder")
        named = {prefix + short: name for short, name in used.items()}

        def unpack(name: str, tensor: Tensor) -> Tensor:
            part = _part(name, named[name])
            return tensor if part is None else tensor.chunk(3)[part]

        fill(model, checkpoint, named, device=device, dtype_of=lambda name: dtype, transform=unpack)
    return model


@torch.no_grad()
def picture_states(model: CLIPVisionModel, pictures: Tensor) -> Tensor:
    """pictures: (B, 3, image, image), normalised -> (B, P, D), the class token first. No final norm."""
    weight = next(model.parameters())
    states: Tensor = model(pixel_values=pictures.to(weight.device, weight.dtype)).last_hidden_state
    return states


def _config(path: Path) -> Mapping[str, Any]:
    """Of a CLIP with both halves, the part about pictures."""
    config = read_model_config(path)
    inner = config.get("vision_config")
    return inner if isinstance(inner, Mapping) else config


def _sources(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in CLIPVisionModel without prefix -> name in the file. Text model and projections are dropped.

    OpenCLIP keeps query, key and value in one tensor, so three names lead to it.
    """
    names = without_helpers(checkpoint.header)
    prefix = prefix_before(names, CLASS)
    if prefix is not None:
        own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        return {
            short: name
            for short, name in own.items()
            if short.startswith(PARTS) and not short.endswith("position_ids")
        }
    prefix = prefix_before(names, OPEN_CLIP_CLASS)
    if prefix is None:
        first = ", ".join(names[:3]) or "none"
        raise BadFileError(
            f"{checkpoint.path} is not a CLIP image encoder: none of its {len(names)} tensors is named "
            f"{CLASS} (first: {first}). Expected {WANTED}."
        )
    own = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {new: name for short, name in own.items() if short != "head" for new in _open_clip_names(short)}


def _open_clip_names(short: str) -> list[str]:
    """ "transformer.0.attn.to_qkv.bias" -> "encoder.layers.0.self_attn.q_proj.bias", k_proj, v_proj."""
    name = short
    for old, new in _OPEN_CLIP:
        if name.startswith(old) or (old.startswith(".") and old in name):
            name = name.replace(old, new, 1)
    if QKV not in name:
        return [name]
    return [name.replace(QKV, f"self_attn.{part}_proj.") for part in "qkv"]


def _part(name: str, source: str) -> int | None:
    """Which third of a joint tensor a weight is; None for a tensor of its own."""
    return "qkv".index(name.rpartition("_proj.")[0][-1]) if QKV in source else None


def _unpacked(name: str, source: str, info: TensorInfo) -> TensorInfo:
    """The shape a tensor has once it is taken out of its file's form."""
    shape = info.shape
    if _part(name, source) is not None:
        shape = (shape[0] // 3, *shape[1:])
    if name == CLASS:
        shape = shape[-1:]
    if name == POSITIONS:
        shape = shape[-2:]
    return TensorInfo(shape=shape, dtype=info.dtype)


def _layer(name: str) -> int:
    """The number in "encoder.layers.N.", -1 for what is not in a layer."""
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def _sizes(checkpoint: Checkpoint, sources: Mapping[str, str], config: Mapping[str, Any]) -> ClipVisionSizes:
    def shape(name: str) -> tuple[int, ...]:
        if name not in sources:
            raise BadFileError(
                f"{checkpoint.path} is not a whole CLIP image encoder: it lacks {name}. Expected {WANTED}."
            )
        return checkpoint.header[sources[name]].shape

    hidden, _, patch, _ = shape(PATCH)
    positions = shape(POSITIONS)[-2]
    heads = config.get("num_attention_heads")
    if heads is None and hidden % HEAD:
        raise BadFileError(
            f"{checkpoint.path} is a CLIP image encoder of width {hidden}; ViT-H's is a multiple of {HEAD}. "
            f"Expected {WANTED}."
        )
    return ClipVisionSizes(
        image=round((positions - 1) ** 0.5) * patch,
        patch=patch,
        hidden=hidden,
        mlp=shape("encoder.layers.0.mlp.fc1.weight")[0],
        layers=1 + max(_layer(name) for name in sources),
        heads=int(heads or hidden // HEAD),
        eps=float(config.get("layer_norm_eps", EPS)),
        activation=str(config.get("hidden_act", ACTIVATION)),
    )


def _empty_clip_vision(sizes: ClipVisionSizes, *, layers: int) -> CLIPVisionModel:
    def build() -> CLIPVisionModel:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=sizes.hidden,
            intermediate_size=sizes.mlp,
            num_hidden_layers=layers,
            num_attention_heads=sizes.heads,
            image_size=sizes.image,
            patch_size=sizes.patch,
            hidden_act=sizes.activation,
            layer_norm_eps=sizes.eps,
            attn_implementation="sdpa",
        )
        return CLIPVisionModel(config)

    return empty(build)
