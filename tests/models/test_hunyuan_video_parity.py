"""Our HunyuanVideo against diffusers' class with the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo

TOLERANCE = 1e-5

# Module names of the original checkpoints -> diffusers. A tuple splits the rows evenly, except where noted.
TOP = {
    "img_in.proj": "x_embedder.proj",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",  # halves swapped
}
REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.linear": "norm1.linear",
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "img_attn_proj": "attn.to_out.0",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mod.linear": "norm1_context.linear",
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
    "txt_attn_proj": "attn.to_add_out",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),  # q, k, v of D rows each, then the MLP
    "linear2": "proj_out",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "modulation.linear": "norm.linear",
}


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest number, so that small gradients are compared as strictly as outputs."""
    largest = float(theirs.detach().abs().max())
    assert largest > 0, "zeros prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * min(largest, 1.0))


def diffusers_names(config: HunyuanVideoConfig) -> dict[str, str | tuple[str, ...]]:
    names: dict[str, str | tuple[str, ...]] = dict(TOP)
    for count, table, ours, theirs in (
        (
            2,
            REFINER,
            "txt_in.individual_token_refiner.blocks",
            "context_embedder.token_refiner.refiner_blocks",
        ),
        (config.double_blocks, DOUBLE, "double_blocks", "transformer_blocks"),
        (config.single_blocks, SINGLE, "single_blocks", "single_transformer_blocks"),
    ):
        for block in range(count):
            for name, other in table.items():
                parts = other if isinstance(other, tuple) else (other,)
                renamed = tuple(f"{theirs}.{block}.{part}" for part in parts)
                names[f"{ours}.{block}.{name}"] = renamed if len(renamed) > 1 else renamed[0]
    return names


def to_diffusers(state: dict[str, Tensor], config: HunyuanVideoConfig) -> dict[str, Tensor]:
    names = diffusers_names(config)
    result = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        target = names[module]
        if module == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)
            tensor = torch.cat([scale, shift])
        if isinstance(target, str):
            result[f"{target}.{kind}"] = tensor
            continue
        rows = [config.hidden] * 3 + ([config.mlp_width] if len(target) == 4 else [])
        for part, piece in zip(target, tensor.split(rows), strict=True):
            result[f"{part}.{kind}"] = piece
    return result


def oracle(network: HunyuanVideo) -> nn.Module:
    from diffusers import HunyuanVideoTransformer3DModel

    config = network.config
    other = HunyuanVideoTransformer3DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_size,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        num_refiner_layers=2,
        mlp_ratio=4.0,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=config.guidance,
        text_embed_dim=config.text_width,
        pooled_projection_dim=config.pooled_width,
        rope_theta=256.0,
        rope_axes_dim=config.rope_axes,
    )
    other.load_state_dict(to_diffusers(network.state_dict(), config), strict=True)
    return other.requires_grad_(False).eval()


def run_oracle(other: nn.Module, inputs: dict[str, Any], guidance: bool = True) -> Tensor:
    text = inputs["text"]
    mask = torch.zeros(text.shape[:2], dtype=torch.long)
    for row, length in enumerate(inputs["lengths"]):
        mask[row, :length] = 1
    return other(
        hidden_states=inputs["x"],
        timestep=inputs["t"],
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        pooled_projections=inputs["pooled"],
        guidance=inputs["guidance"] if guidance else None,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("guidance", [True, False], ids=["distilled", "without guidance"])
def test_the_output_equals_diffusers(hunyuan, hunyuan_inputs, guidance: bool):
    network = hunyuan(guidance=guidance)
    inputs = hunyuan_inputs()
    ours, theirs = network(**inputs), run_oracle(oracle(network), inputs, guidance)
    assert theirs.std() > 0.1, "the comparison must not be one of zeros"
    assert_equal(ours, theirs)


def test_the_training_loss_and_weight_gradients_equal_diffusers(hunyuan, hunyuan_inputs):
    network = hunyuan()
    other = oracle(network)
    inputs = hunyuan_inputs()
    target = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(5))
    ours = [network.double_blocks[0].txt_attn_proj.weight, network.single_blocks[0].linear2.weight]
    theirs = [
        other.get_parameter("transformer_blocks.0.attn.to_add_out.weight"),
        other.get_parameter("single_transformer_blocks.0.proj_out.weight"),
    ]
    for weight in (*ours, *theirs):
        weight.requires_grad_(True)
    losses = []
    for predicted in (network(**inputs), run_oracle(other, inputs)):
        losses.append((predicted - target).square().mean())
        losses[-1].backward()
    assert_equal(losses[0], losses[1])
    for mine, reference in zip(ours, theirs, strict=True):
        assert_equal(mine.grad, reference.grad)


class Adapted(nn.Module):
    """The smallest possible LoRA, written for this test: y = linear(x) + up(down(x))."""

    def __init__(self, linear: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(down.clone())
        self.up = nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.down.T @ self.up.T


def adapt(model: nn.Module, name: str, down: Tensor, up: Tensor) -> Adapted:
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    adapted = Adapted(owner.get_submodule(leaf), down, up)
    setattr(owner, leaf, adapted)
    return adapted


def test_the_gradient_of_an_adapter_equals_diffusers(hunyuan, hunyuan_inputs):
    network = hunyuan()
    other = oracle(network)
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((4, 64), (192, 4)))
    ours = adapt(network, "double_blocks.1.img_attn_qkv", down, up)
    theirs = [
        adapt(other, f"transformer_blocks.1.attn.to_{part}", down, rows)
        for part, rows in zip("qkv", up.split(64), strict=True)
    ]
    inputs = hunyuan_inputs()
    network(**inputs).square().mean().backward()
    run_oracle(other, inputs).square().mean().backward()

    assert_equal(ours.down.grad, sum(part.down.grad for part in theirs))
    assert_equal(ours.up.grad, torch.cat([part.up.grad for part in theirs]))


def test_every_weight_of_the_released_model_has_its_place(hunyuan_config):
    with torch.device("meta"):
        network = HunyuanVideo(HunyuanVideoConfig())
    state = network.state_dict()
    assert len(state) == 856
    assert sum(tensor.numel() for tensor in state.values()) == 12_821_012_544
