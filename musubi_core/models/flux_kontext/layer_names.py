"""Names of the network's layers in diffusers."""

from __future__ import annotations

from musubi_core.models.spec import LayerNames, Shapes

_DOUBLE, _SINGLE = "double_blocks.{}", "single_blocks.{}"
_THEIR_DOUBLE, _THEIR_SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_TIME = "time_text_embed"

DIFFUSERS = LayerNames(
    rows=(
        (f"{_DOUBLE}.img_mod.lin", (f"{_THEIR_DOUBLE}.norm1.linear",)),
        (f"{_DOUBLE}.txt_mod.lin", (f"{_THEIR_DOUBLE}.norm1_context.linear",)),
        (f"{_DOUBLE}.img_attn.qkv", tuple(f"{_THEIR_DOUBLE}.attn.to_{part}" for part in "qkv")),
        (f"{_DOUBLE}.txt_attn.qkv", tuple(f"{_THEIR_DOUBLE}.attn.add_{part}_proj" for part in "qkv")),
        (f"{_DOUBLE}.img_attn.norm.query_norm", (f"{_THEIR_DOUBLE}.attn.norm_q",)),
        (f"{_DOUBLE}.img_attn.norm.key_norm", (f"{_THEIR_DOUBLE}.attn.norm_k",)),
        (f"{_DOUBLE}.txt_attn.norm.query_norm", (f"{_THEIR_DOUBLE}.attn.norm_added_q",)),
        (f"{_DOUBLE}.txt_attn.norm.key_norm", (f"{_THEIR_DOUBLE}.attn.norm_added_k",)),
        (f"{_DOUBLE}.img_attn.proj", (f"{_THEIR_DOUBLE}.attn.to_out.0",)),
        (f"{_DOUBLE}.txt_attn.proj", (f"{_THEIR_DOUBLE}.attn.to_add_out",)),
        (f"{_DOUBLE}.img_mlp.0", (f"{_THEIR_DOUBLE}.ff.net.0.proj",)),
        (f"{_DOUBLE}.img_mlp.2", (f"{_THEIR_DOUBLE}.ff.net.2",)),
        (f"{_DOUBLE}.txt_mlp.0", (f"{_THEIR_DOUBLE}.ff_context.net.0.proj",)),
        (f"{_DOUBLE}.txt_mlp.2", (f"{_THEIR_DOUBLE}.ff_context.net.2",)),
        (
            f"{_SINGLE}.linear1",
            (*(f"{_THEIR_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_THEIR_SINGLE}.proj_mlp"),
        ),
        (f"{_SINGLE}.linear2", (f"{_THEIR_SINGLE}.proj_out",)),
        (f"{_SINGLE}.norm.query_norm", (f"{_THEIR_SINGLE}.attn.norm_q",)),
        (f"{_SINGLE}.norm.key_norm", (f"{_THEIR_SINGLE}.attn.norm_k",)),
        (f"{_SINGLE}.modulation.lin", (f"{_THEIR_SINGLE}.norm.linear",)),
        ("img_in", ("x_embedder",)),
        ("txt_in", ("context_embedder",)),
        ("time_in.in_layer", (f"{_TIME}.timestep_embedder.linear_1",)),
        ("time_in.out_layer", (f"{_TIME}.timestep_embedder.linear_2",)),
        ("guidance_in.in_layer", (f"{_TIME}.guidance_embedder.linear_1",)),
        ("guidance_in.out_layer", (f"{_TIME}.guidance_embedder.linear_2",)),
        ("vector_in.in_layer", (f"{_TIME}.text_embedder.linear_1",)),
        ("vector_in.out_layer", (f"{_TIME}.text_embedder.linear_2",)),
        ("final_layer.linear", ("proj_out",)),
        ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
    ),
    swapped=("final_layer.adaLN_modulation.1",),
)


def released() -> Shapes:
    """Names and shapes of the parameters of the released network."""
    import torch

    from musubi_core.models.flux_kontext.config import FluxKontextConfig
    from musubi_core.models.flux_kontext.model import FluxKontext

    with torch.device("meta"):
        network = FluxKontext(FluxKontextConfig())
    return {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
