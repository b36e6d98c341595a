"""Our FLUX.1 Kontext against diffusers' class with the same random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from flux_kontext_networks import make_inputs, make_network
from torch import Tensor, nn

from musubi_core.models.flux_kontext.config import FluxKontextConfig
from musubi_core.models.flux_kontext.model import FluxKontext

TOLERANCE = 1e-5
EVEN, ODD = (8, 12), (7, 9)
# The references, and for each (picture, first row, first column) of its ids in tokens, written out by hand.
SCENES: dict[str, tuple[tuple[int, int], list[tuple[int, int]], list[tuple[int, int, int]], str]] = {
    "no reference": (EVEN, [], [], "offset"),
    "one reference": (EVEN, [(6, 10)], [(1, 0, 0)], "offset"),
    "odd token grid": ((10, 6), [(14, 6)], [(1, 0, 0)], "offset"),
    "odd latents": (ODD, [(5, 11)], [(1, 0, 0)], "offset"),
    # 6x10 then 8x4: 14 rows below each other against 14 columns side by side, so it goes below.
    "two references, below": (EVEN, [(6, 10), (8, 4)], [(1, 0, 0), (1, 3, 0)], "offset"),
    "two references, beside": (EVEN, [(10, 6), (8, 4)], [(1, 0, 0), (1, 0, 3)], "offset"),
    "two references by index": (EVEN, [(6, 10), (8, 4)], [(1, 0, 0), (2, 0, 0)], "index"),
    "three references": (
        EVEN,
        [(6, 10), (8, 4), (4, 4)],
        [(1, 0, 0), (1, 3, 0), (1, 0, 5)],
        "offset",
    ),
}

# Module names of the original checkpoints -> diffusers. A tuple splits the rows, D each and the rest last.
TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",  # halves swapped
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "modulation.lin": "norm.linear",
}


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest number, so that small gradients are compared as strictly as outputs."""
    largest = float(theirs.detach().abs().max())
    assert largest > 0, "zeros prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * min(largest, 1.0))


def diffusers_names(config: FluxKontextConfig) -> dict[str, str | tuple[str, ...]]:
    names: dict[str, str | tuple[str, ...]] = dict(TOP)
    for count, table, ours, theirs in (
        (config.double_blocks, DOUBLE, "double_blocks", "transformer_blocks"),
        (config.single_blocks, SINGLE, "single_blocks", "single_transformer_blocks"),
    ):
        for block in range(count):
            for name, other in table.items():
                parts = other if isinstance(other, tuple) else (other,)
                renamed = tuple(f"{theirs}.{block}.{part}" for part in parts)
                names[f"{ours}.{block}.{name}"] = renamed if len(renamed) > 1 else renamed[0]
    return names


def to_diffusers(state: dict[str, Tensor], config: FluxKontextConfig) -> dict[str, Tensor]:
    names = diffusers_names(config)
    result = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        target, kind = names[module], kind.replace("scale", "weight")
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


def oracle(network: FluxKontext) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    config = network.config
    other = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * config.channels,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        attention_head_dim=config.head_size,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_width,
        pooled_projection_dim=config.pooled_width,
        guidance_embeds=True,
        axes_dims_rope=config.rope_axes,
    )
    other.load_state_dict(to_diffusers(network.state_dict(), config), strict=True)
    return other.requires_grad_(False).eval()


def evened(latent: Tensor) -> Tensor:
    """An odd last row or column is followed by the first one."""
    if latent.shape[-2] % 2:
        latent = torch.cat([latent, latent[:, :, :1]], dim=2)
    if latent.shape[-1] % 2:
        latent = torch.cat([latent, latent[:, :, :, :1]], dim=3)
    return latent


def tokens_of(latent: Tensor) -> Tensor:
    """As diffusers' pipelines pack: (B, C, h, w) -> (B, h/2 * w/2, 4C)."""
    batch, channels, height, width = latent.shape
    grid = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, -1, channels * 4)


def ids_of(latent: Tensor, start: tuple[int, int, int]) -> Tensor:
    rows, columns = latent.shape[-2] // 2, latent.shape[-1] // 2
    ids = [[start[0], start[1] + row, start[2] + column] for row in range(rows) for column in range(columns)]
    return torch.tensor(ids, dtype=torch.float32)


def run_oracle(
    other: nn.Module, inputs: dict[str, Any], starts: Sequence[tuple[int, int, int]] = ()
) -> Tensor:
    """diffusers' class on packed tokens with ids from `starts`; the target's tokens as a latent again."""
    height, width = inputs["x"].shape[-2:]
    pictures = [evened(picture) for picture in (inputs["x"], *inputs["references"])]
    predicted = other(
        hidden_states=torch.cat([tokens_of(picture) for picture in pictures], dim=1),
        timestep=inputs["t"],
        guidance=inputs["guidance"],
        pooled_projections=inputs["pooled"],
        encoder_hidden_states=inputs["text"],
        txt_ids=torch.zeros(inputs["text"].shape[1], 3),
        img_ids=torch.cat(
            [ids_of(picture, start) for picture, start in zip(pictures, [(0, 0, 0), *starts], strict=True)]
        ),
        return_dict=False,
    )[0]
    batch, channels, rows, columns = pictures[0].shape
    own = predicted[:, : rows * columns // 4].view(batch, rows // 2, columns // 2, channels, 2, 2)
    return own.permute(0, 3, 1, 4, 2, 5).reshape(pictures[0].shape)[:, :, :height, :width]


@pytest.mark.parametrize(("size", "references", "starts", "placement"), SCENES.values(), ids=SCENES)
def test_the_output_equals_diffusers(size, references, starts, placement):
    network = make_network()
    inputs = make_inputs(*references, size=size)
    ours = network(**inputs, placement=placement)
    theirs = run_oracle(oracle(network), inputs, starts)
    assert theirs.std() > 0.1, "the comparison must not be one of zeros"
    assert ours.shape == inputs["x"].shape
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    "scene", ["one reference", "odd latents", "two references, below", "two references by index"]
)
def test_the_training_loss_and_weight_gradients_equal_diffusers(scene: str):
    size, references, starts, placement = SCENES[scene]
    network = make_network()
    other = oracle(network)
    inputs = make_inputs(*references, size=size)
    target = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(5))
    ours = [network.double_blocks[0].txt_attn.proj.weight, network.single_blocks[0].linear2.weight]
    theirs = [
        other.get_parameter("transformer_blocks.0.attn.to_add_out.weight"),
        other.get_parameter("single_transformer_blocks.0.proj_out.weight"),
    ]
    for weight in (*ours, *theirs):
        weight.requires_grad_(True)
    losses = []
    for predicted in (network(**inputs, placement=placement), run_oracle(other, inputs, starts)):
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


@pytest.mark.parametrize("scene", ["one reference", "two references, below"])
def test_the_gradient_of_an_adapter_equals_diffusers(scene: str):
    size, references, starts, placement = SCENES[scene]
    network = make_network()
    other = oracle(network)
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((4, 64), (192, 4)))
    ours = adapt(network, "double_blocks.1.img_attn.qkv", down, up)
    theirs = [
        adapt(other, f"transformer_blocks.1.attn.to_{part}", down, rows)
        for part, rows in zip("qkv", up.split(64), strict=True)
    ]
    inputs = make_inputs(*references, size=size)
    network(**inputs, placement=placement).square().mean().backward()
    run_oracle(other, inputs, starts).square().mean().backward()

    assert_equal(ours.down.grad, sum(part.down.grad for part in theirs))
    assert_equal(ours.up.grad, torch.cat([part.up.grad for part in theirs]))


def test_every_weight_of_the_released_model_has_its_place():
    with torch.device("meta"):
        network = FluxKontext(FluxKontextConfig())
    state = network.state_dict()
    assert len(state) == 780
    assert sum(tensor.numel() for tensor in state.values()) == 11_901_408_320
