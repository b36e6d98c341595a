"""Our Wan against diffusers' class with the same random weights, for every kind of network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wan_networks import KINDS, make_inputs, make_network

from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import Wan
from musubi_core.models.wan.released import LAYOUTS, RELEASED
from musubi_core.models.wan.spec import SPEC

TOLERANCE = 1e-5
SIZES = [(3, 8, 12), (1, 4, 4)]

# Names of the original checkpoints -> diffusers.
TOP = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}
WHOLE = {
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.modulation": "scale_shift_table",
}
BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest number, so that small gradients are compared as strictly as outputs."""
    largest = float(theirs.detach().abs().max())
    assert largest > 0, "zeros prove nothing"
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=TOLERANCE * min(largest, 1.0))


def diffusers_name(key: str) -> str:
    if key in WHOLE:
        return WHOLE[key]
    if not key.startswith("blocks."):
        module, _, kind = key.rpartition(".")
        return f"{TOP[module]}.{kind}"
    _, number, rest = key.split(".", 2)
    if rest == "modulation":
        return f"blocks.{number}.scale_shift_table"
    module, _, kind = rest.rpartition(".")
    return f"blocks.{number}.{BLOCK[module]}.{kind}"


def oracle(network: Wan) -> nn.Module:
    from diffusers import WanTransformer3DModel

    config: WanConfig = network.config
    pictures = config.picture_width > 0
    other = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=config.heads,
        attention_head_dim=config.head_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_width,
        freq_dim=256,
        ffn_dim=config.mlp_width,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        image_dim=config.picture_width if pictures else None,
        added_kv_proj_dim=config.hidden if pictures else None,
        rope_max_seq_len=1024,
        pos_embed_seq_len=config.picture_tokens or None,
    )
    other.load_state_dict(
        {diffusers_name(name): tensor.clone() for name, tensor in network.state_dict().items()}, strict=True
    )
    return other.requires_grad_(False).eval()


def run_oracle(other: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """diffusers joins nothing by itself, and takes first and last picture of a sample one after the other."""
    parts = [inputs["x"], inputs["beside"]] if "beside" in inputs else [inputs["x"]]
    pictures = inputs.get("pictures")
    if pictures is not None and other.config.pos_embed_seq_len:
        pictures = pictures.unflatten(1, (2, 257)).flatten(0, 1)
    return other(
        hidden_states=torch.cat(parts, dim=1),
        timestep=inputs["t"],
        encoder_hidden_states=inputs["text"],
        encoder_hidden_states_image=pictures,
        return_dict=False,
    )[0]


def token_times(size: tuple[int, int, int]) -> Tensor:
    """(B, L): TI2V-5B continues a known first frame, whose tokens are clean."""
    frames, rows, columns = size[0], size[1] // 2, size[2] // 2
    times = torch.tensor([300.0, 773.5])[:, None].repeat(1, frames * rows * columns)
    times[:, : rows * columns] = 0
    return times


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("task", KINDS)
def test_the_output_equals_diffusers(task: str, size: tuple[int, int, int]):
    network = make_network(task)
    inputs = make_inputs(task, size=size)
    ours, theirs = network(**inputs), run_oracle(oracle(network), inputs)
    assert theirs.std() > 0.1, "the comparison must not be one of zeros"
    assert_equal(ours, theirs)


@pytest.mark.parametrize("task", ["i2v-14B", "flf2v-14B"])
def test_faint_picture_features_equal_diffusers(task: str):
    """Their variance is near the smallest number of the norms before and after the projection."""
    network = make_network(task)
    for name, parameter in network.named_parameters():
        if name in ("img_emb.emb_pos", "img_emb.proj.3.weight", "img_emb.proj.3.bias"):
            parameter.mul_(1e-3)
    inputs = make_inputs(task)
    inputs["pictures"] *= 3e-3
    assert_equal(network(**inputs), run_oracle(oracle(network), inputs))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_time_for_every_token_equals_diffusers(size: tuple[int, int, int]):
    network = make_network("ti2v-5B")
    inputs = {**make_inputs("ti2v-5B", size=size), "t": token_times(size)}
    ours, theirs = network(**inputs), run_oracle(oracle(network), inputs)
    assert_equal(ours, theirs)
    by_frame = {**inputs, "t": inputs["t"].unflatten(1, (size[0], -1))[:, :, 0]}
    torch.testing.assert_close(network(**by_frame), ours, rtol=0, atol=1e-5)


def test_the_spec_gives_diffusers_names_of_every_layer_of_the_largest_network():
    table = {ours: theirs for ours, (theirs,) in SPEC.diffusers_names.rows}
    released = SPEC.released()
    layers = {key.rpartition(".")[0] for key in released if not key.endswith(("modulation", "emb_pos"))}
    for layer in layers:
        number = layer.split(".")[1] if layer.startswith("blocks.") else ""
        theirs = table[layer.replace(f".{number}.", ".{}.", 1) if number else layer]
        assert f"{theirs.format(number)}.weight" == diffusers_name(f"{layer}.weight")
    assert len(released) == 1304


def losses_of(predictions: tuple[Tensor, Tensor], target: Tensor) -> list[Tensor]:
    losses = [(predicted - target).square().mean() for predicted in predictions]
    for loss in losses:
        loss.backward()
    return losses


@pytest.mark.parametrize("task", KINDS)
def test_the_training_loss_and_weight_gradients_equal_diffusers(task: str):
    network = make_network(task)
    other = oracle(network)
    inputs = make_inputs(task)
    if task == "ti2v-5B":
        inputs["t"] = token_times(inputs["x"].shape[2:])
    target = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(5))
    names = ["blocks.0.self_attn.o.weight", "blocks.1.ffn.0.weight", "blocks.0.cross_attn.k.weight"]
    if network.img_emb is not None:
        names.append("blocks.1.cross_attn.v_img.weight")
    ours = [network.get_parameter(name) for name in names]
    theirs = [other.get_parameter(diffusers_name(name)) for name in names]
    for weight in (*ours, *theirs):
        weight.requires_grad_(True)
    losses = losses_of((network(**inputs), run_oracle(other, inputs)), target)
    assert_equal(*losses)
    for mine, reference in zip(ours, theirs, strict=True):
        assert_equal(mine.grad, reference.grad)


class Adapted(nn.Module):
    """The smallest possible LoRA, written for this test: y = linear(x) + up(down(x))."""

    def __init__(self, linear: nn.Module, down: Tensor, up: Tensor) -> None:
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


@pytest.mark.parametrize("task", KINDS)
def test_the_gradient_of_an_adapter_equals_diffusers(task: str):
    network = make_network(task)
    other = oracle(network)
    inputs = make_inputs(task)
    generator = torch.Generator().manual_seed(3)
    name = "blocks.0.cross_attn.k_img" if network.img_emb is not None else "blocks.0.self_attn.k"
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((4, 128), (128, 4)))
    ours = adapt(network, name, down, up)
    theirs = adapt(other, diffusers_name(f"{name}.weight").removesuffix(".weight"), down, up)
    target = torch.randn(inputs["x"].shape, generator=generator)
    assert_equal(*losses_of((network(**inputs), run_oracle(other, inputs)), target))
    assert_equal(ours.down.grad, theirs.down.grad)
    assert_equal(ours.up.grad, theirs.up.grad)


# task: tensors and numbers of the released network
COUNTS = {
    "t2v-1.3B": (825, 1_418_996_800),
    "t2v-14B": (1095, 14_288_491_584),
    "i2v-14B": (1303, 16_394_878_784),
    "flf2v-14B": (1304, 16_395_536_704),
    "t2v-1.3B-FC": (983, 1_564_502_336),
    "i2v-14B-FC": (1303, 16_395_124_544),
    "t2v-A14B": (1095, 14_288_491_584),
    "i2v-A14B": (1095, 14_288_901_184),
    "ti2v-5B": (825, 4_999_787_712),
}


def released_config(task: str) -> WanConfig:
    hidden, layout = RELEASED[task].hidden, LAYOUTS[task]
    layers, mlp = {1536: (30, 8960), 5120: (40, 13824), 3072: (30, 14336)}[hidden]
    return WanConfig(
        hidden=hidden,
        heads=hidden // 128,
        layers=layers,
        mlp_width=mlp,
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        picture_width=1280 if layout.pictures else 0,
        picture_tokens=514 if layout.two_pictures else 0,
    )


@pytest.mark.parametrize(("task", "counts"), COUNTS.items(), ids=COUNTS)
def test_every_weight_of_the_released_networks_has_its_place(task: str, counts: tuple[int, int]):
    with torch.device("meta"):
        state = Wan(released_config(task)).state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == counts
