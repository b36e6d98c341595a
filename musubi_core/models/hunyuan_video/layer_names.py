"""Names of the layers in diffusers, and in FramePack, which is the same network behind other inputs."""

from __future__ import annotations

from musubi_core.models.spec import LayerNames, Shapes

_DOUBLE, _SINGLE = "double_blocks.{}", "single_blocks.{}"
_REFINER = "txt_in.individual_token_refiner.blocks.{}"
_THEIR_DOUBLE, _THEIR_SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_THEIR_REFINER = "context_embedder.token_refiner.refiner_blocks.{}"
_TIME, _TEXT_TIME = "time_text_embed", "context_embedder.time_text_embed"

_BLOCKS = (
    (f"{_DOUBLE}.img_mod.linear", (f"{_THEIR_DOUBLE}.norm1.linear",)),
    (f"{_DOUBLE}.txt_mod.linear", (f"{_THEIR_DOUBLE}.norm1_context.linear",)),
    (f"{_DOUBLE}.img_attn_qkv", tuple(f"{_THEIR_DOUBLE}.attn.to_{part}" for part in "qkv")),
    (f"{_DOUBLE}.txt_attn_qkv", tuple(f"{_THEIR_DOUBLE}.attn.add_{part}_proj" for part in "qkv")),
    (f"{_DOUBLE}.img_attn_q_norm", (f"{_THEIR_DOUBLE}.attn.norm_q",)),
    (f"{_DOUBLE}.img_attn_k_norm", (f"{_THEIR_DOUBLE}.attn.norm_k",)),
    (f"{_DOUBLE}.txt_attn_q_norm", (f"{_THEIR_DOUBLE}.attn.norm_added_q",)),
    (f"{_DOUBLE}.txt_attn_k_norm", (f"{_THEIR_DOUBLE}.attn.norm_added_k",)),
    (f"{_DOUBLE}.img_attn_proj", (f"{_THEIR_DOUBLE}.attn.to_out.0",)),
    (f"{_DOUBLE}.txt_attn_proj", (f"{_THEIR_DOUBLE}.attn.to_add_out",)),
    (f"{_DOUBLE}.img_mlp.fc1", (f"{_THEIR_DOUBLE}.ff.net.0.proj",)),
    (f"{_DOUBLE}.img_mlp.fc2", (f"{_THEIR_DOUBLE}.ff.net.2",)),
    (f"{_DOUBLE}.txt_mlp.fc1", (f"{_THEIR_DOUBLE}.ff_context.net.0.proj",)),
    (f"{_DOUBLE}.txt_mlp.fc2", (f"{_THEIR_DOUBLE}.ff_context.net.2",)),
    (
        f"{_SINGLE}.linear1",
        (*(f"{_THEIR_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_THEIR_SINGLE}.proj_mlp"),
    ),
    (f"{_SINGLE}.linear2", (f"{_THEIR_SINGLE}.proj_out",)),
    (f"{_SINGLE}.q_norm", (f"{_THEIR_SINGLE}.attn.norm_q",)),
    (f"{_SINGLE}.k_norm", (f"{_THEIR_SINGLE}.attn.norm_k",)),
    (f"{_SINGLE}.modulation.linear", (f"{_THEIR_SINGLE}.norm.linear",)),
)
_EDGES = (
    ("img_in.proj", ("x_embedder.proj",)),
    ("txt_in.input_embedder", ("context_embedder.proj_in",)),
    ("txt_in.t_embedder.mlp.0", (f"{_TEXT_TIME}.timestep_embedder.linear_1",)),
    ("txt_in.t_embedder.mlp.2", (f"{_TEXT_TIME}.timestep_embedder.linear_2",)),
    ("txt_in.c_embedder.linear_1", (f"{_TEXT_TIME}.text_embedder.linear_1",)),
    ("txt_in.c_embedder.linear_2", (f"{_TEXT_TIME}.text_embedder.linear_2",)),
    (f"{_REFINER}.norm1", (f"{_THEIR_REFINER}.norm1",)),
    (f"{_REFINER}.norm2", (f"{_THEIR_REFINER}.norm2",)),
    (f"{_REFINER}.self_attn_qkv", tuple(f"{_THEIR_REFINER}.attn.to_{part}" for part in "qkv")),
    (f"{_REFINER}.self_attn_proj", (f"{_THEIR_REFINER}.attn.to_out.0",)),
    (f"{_REFINER}.mlp.fc1", (f"{_THEIR_REFINER}.ff.net.0.proj",)),
    (f"{_REFINER}.mlp.fc2", (f"{_THEIR_REFINER}.ff.net.2",)),
    (f"{_REFINER}.adaLN_modulation.1", (f"{_THEIR_REFINER}.norm_out.linear",)),
    ("time_in.mlp.0", (f"{_TIME}.timestep_embedder.linear_1",)),
    ("time_in.mlp.2", (f"{_TIME}.timestep_embedder.linear_2",)),
    ("guidance_in.mlp.0", (f"{_TIME}.guidance_embedder.linear_1",)),
    ("guidance_in.mlp.2", (f"{_TIME}.guidance_embedder.linear_2",)),
    ("vector_in.in_layer", (f"{_TIME}.text_embedder.linear_1",)),
    ("vector_in.out_layer", (f"{_TIME}.text_embedder.linear_2",)),
    ("final_layer.linear", ("proj_out",)),
    ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
)

DIFFUSERS = LayerNames(rows=(*_BLOCKS, *_EDGES), swapped=("final_layer.adaLN_modulation.1",))
# Only what its blocks learned carries over: FramePack's inputs are other ones.
RELATED = {"framepack": LayerNames(rows=_BLOCKS)}


def released() -> Shapes:
    """Names and shapes of the parameters of the released network."""
    import torch

    from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
    from musubi_core.models.hunyuan_video.model import HunyuanVideo

    with torch.device("meta"):
        network = HunyuanVideo(HunyuanVideoConfig())
    return {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
