"""Names of the network's layers in diffusers."""

from __future__ import annotations

from musubi_core.models.spec import LayerNames, Shapes

_BLOCK = "blocks.{}"
_CONDITION = "condition_embedder"
_PICTURES = f"{_CONDITION}.image_embedder"


_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}


def _attention(ours: str, theirs: str) -> tuple[tuple[str, tuple[str]], ...]:
    return tuple(
        (f"{_BLOCK}.{ours}.{own}", (f"{_BLOCK}.{theirs}.{other}",)) for own, other in _ATTENTION.items()
    )


DIFFUSERS = LayerNames(
    rows=(
        *_attention("self_attn", "attn1"),
        *_attention("cross_attn", "attn2"),
        (f"{_BLOCK}.cross_attn.k_img", (f"{_BLOCK}.attn2.add_k_proj",)),
        (f"{_BLOCK}.cross_attn.v_img", (f"{_BLOCK}.attn2.add_v_proj",)),
        (f"{_BLOCK}.cross_attn.norm_k_img", (f"{_BLOCK}.attn2.norm_added_k",)),
        (f"{_BLOCK}.norm3", (f"{_BLOCK}.norm2",)),
        (f"{_BLOCK}.ffn.0", (f"{_BLOCK}.ffn.net.0.proj",)),
        (f"{_BLOCK}.ffn.2", (f"{_BLOCK}.ffn.net.2",)),
        ("patch_embedding", ("patch_embedding",)),
        ("text_embedding.0", (f"{_CONDITION}.text_embedder.linear_1",)),
        ("text_embedding.2", (f"{_CONDITION}.text_embedder.linear_2",)),
        ("time_embedding.0", (f"{_CONDITION}.time_embedder.linear_1",)),
        ("time_embedding.2", (f"{_CONDITION}.time_embedder.linear_2",)),
        ("time_projection.1", (f"{_CONDITION}.time_proj",)),
        ("img_emb.proj.0", (f"{_PICTURES}.norm1",)),
        ("img_emb.proj.1", (f"{_PICTURES}.ff.net.0.proj",)),
        ("img_emb.proj.3", (f"{_PICTURES}.ff.net.2",)),
        ("img_emb.proj.4", (f"{_PICTURES}.norm2",)),
        ("head.head", ("proj_out",)),
    ),
)


def released() -> Shapes:
    """Names and shapes of the parameters of the largest released network, for first and last frame."""
    import torch

    from musubi_core.models.wan.config import WanConfig
    from musubi_core.models.wan.model import Wan

    with torch.device("meta"):
        network = Wan(WanConfig(in_channels=36, picture_width=1280, picture_tokens=514))
    return {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
