"""LoRA files: names, numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.networks.loading import load_lora, match
from musubi_core.networks.naming import spelling_table
from musubi_core.networks.reading import read_lora
from musubi_core.networks.saving import lora_tensors


def equal(one, other) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


def test_musubi_names_are_the_dotted_names_underscored(build):
    tensors = lora_tensors(build(), key_format="musubi")
    assert [key for key in tensors if "blocks_0_mlp" in key][:3] == [
        "lora_unet_blocks_0_mlp_fc1.lora_down.weight",
        "lora_unet_blocks_0_mlp_fc1.lora_up.weight",
        "lora_unet_blocks_0_mlp_fc1.alpha",
    ]
    assert tensors["lora_unet_blocks_0_mlp_fc1.lora_down.weight"].shape == (4, 24)
    assert tensors["lora_unet_blocks_0_mlp_fc1.lora_up.weight"].shape == (16, 4)


def test_comfyui_names_are_the_default(build):
    tensors = lora_tensors(build())
    assert "lora_unet_blocks_0_mlp_0.lora_down.weight" in tensors
    assert not [key for key in tensors if "fc1" in key]


def test_alpha_is_an_exact_float32_scalar_whatever_the_save_precision(build):
    tensors = lora_tensors(build(network_alpha=37.3), torch.bfloat16)
    alphas = {tensor.dtype for key, tensor in tensors.items() if key.endswith(".alpha")}
    weights = {tensor.dtype for key, tensor in tensors.items() if key.endswith(".weight")}
    assert (alphas, weights) == ({torch.float32}, {torch.bfloat16})
    alpha = tensors["lora_unet_blocks_0_attn_qkv.alpha"]
    assert alpha.shape == () and alpha.item() == torch.tensor(37.3).item()


def test_saved_tensors_do_not_follow_the_training(build):
    network = build(trained=True)
    tensors = lora_tensors(network)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    for parameter in network.parameters():
        parameter.detach().add_(1)
    assert all(torch.equal(tensors[key], before[key]) for key in tensors)


def test_two_layers_with_one_underscored_name_are_refused():
    with pytest.raises(ValueError, match=r"a\.b and a_b are both called lora_unet_a_b"):
        spelling_table(["a.b", "a_b"], ())


def respelled(tensors: dict[str, Tensor], network, style: str) -> dict[str, Tensor]:
    """The musubi-style tensors of `network` under the names other programs use."""
    names = {"lora_unet_" + name.replace(".", "_"): name for name in network.adapters}
    suffixes = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    renamed = {}
    for key, tensor in tensors.items():
        base, _, suffix = key.partition(".")
        renamed[f"{style}{names[base]}.{suffixes.get(suffix, suffix)}"] = tensor
    return renamed


@pytest.mark.parametrize("style", ["musubi", "comfyui", "diffusion_model.", "transformer."])
def test_every_spelling_loads_into_the_same_adapters(build, tmp_path, style):
    source = build(trained=True, network_dim=8, network_alpha=3.0)
    if style.endswith("."):
        tensors = respelled(lora_tensors(source, key_format="musubi"), source, style)
    else:
        tensors = lora_tensors(source, key_format=style)
    path = save(tensors, tmp_path / "lora with spaces ü.safetensors")
    network = build(network_dim=8, network_alpha=1.0, network_weights=path)
    assert equal(network, source)
    report = network.loaded
    assert report.matched == tuple(network.adapters) and not report.missing
    assert set(report.alpha_source.values()) == {"file"}


def test_the_strength_in_use_is_the_files(build, tmp_path):
    source = build(trained=True, network_dim=8, network_alpha=4.0)
    path = save(lora_tensors(source), tmp_path / "a.safetensors")
    network = build(network_dim=8, network_alpha=1.0, network_weights=path)
    assert {adapter.scale for adapter in network.adapters.values()} == {0.5}


def test_a_file_without_alpha_means_alpha_equals_rank_and_says_so(build, tmp_path):
    tensors = lora_tensors(build(network_dim=8))
    path = save({k: t for k, t in tensors.items() if not k.endswith("alpha")}, tmp_path / "a.safetensors")
    network = build(network_dim=8, network_weights=path)
    assert {adapter.scale for adapter in network.adapters.values()} == {1.0}
    assert "alpha = rank for 9 without one" in network.loaded.note()


def test_an_integer_alpha_is_read(build, tmp_path):
    tensors = lora_tensors(build(network_dim=8))
    tensors = {key: torch.tensor(2) if key.endswith("alpha") else tensor for key, tensor in tensors.items()}
    network = build(network_dim=8, network_weights=save(tensors, tmp_path / "a.safetensors"))
    assert {adapter.alpha for adapter in network.adapters.values()} == {2.0}


def test_another_rank_is_refused_with_both_numbers(build, tmp_path):
    path = save(lora_tensors(build(network_dim=16)), tmp_path / "a.safetensors")
    with pytest.raises(BadFileError, match=r"rank 16 in the file, rank 8 in this run.*dim_from_weights"):
        build(network_dim=8, network_weights=path)


def test_another_shape_is_refused_with_both_shapes(build, tmp_path):
    tensors = lora_tensors(build())
    tensors["lora_unet_blocks_1_attn_qkv.lora_up.weight"] = torch.zeros(12, 4)
    path = save(tensors, tmp_path / "a.safetensors")
    with pytest.raises(
        BadFileError, match=r"blocks.1.attn_qkv: lora_up.weight is \[12, 4\].*needs \[24, 4\]"
    ):
        build(network_weights=path)


def test_unknown_names_are_listed_with_the_nearest_layers(build, tmp_path):
    tensors = lora_tensors(build())
    tensors["lora_unet_blocks_7_attn_qkv.lora_up.weight"] = torch.zeros(24, 4)
    tensors["lora_unet_blocks_7_attn_qkv.lora_down.weight"] = torch.zeros(4, 8)
    tensors["blocks.0.attn_qkv.diff"] = torch.zeros(1)
    path = save(tensors, tmp_path / "a.safetensors")
    message = (
        r"2 names .* lora_unet_blocks_7_attn_qkv \(nearest: blocks.\d.attn_qkv, .*blocks.0.attn_qkv.diff"
    )
    with pytest.raises(BadFileError, match=message):
        build(network_weights=path)


def test_layers_that_this_run_excludes_are_named_with_the_reason(build, tmp_path):
    path = save(lora_tensors(build()), tmp_path / "a.safetensors")
    with pytest.raises(BadFileError, match=r"blocks.0.attn_qkv \(excluded by .\*qkv\).*include_patterns"):
        build(network_weights=path, network_args=("exclude_patterns=['.*qkv']",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lora_unet_blocks_0_attn_qkv.lora_up.weight"), "a tensor of the pair is missing"),
        (lambda t: t["lora_unet_blocks_0_attn_qkv.lora_up.weight"].fill_(torch.nan), "contains NaN"),
        (lambda t: t["lora_unet_blocks_0_attn_qkv.alpha"].fill_(0), "not one number other than 0"),
        (
            lambda t: t.update(
                {
                    f"diffusion_model.blocks.0.attn_qkv.{p}.weight": torch.ones(4, 4)
                    for p in ("lora_A", "lora_B")
                }
            ),
            "is in the file twice",
        ),
        (lambda t: t.clear(), "it holds no adapter"),
    ],
)
def test_a_broken_file_is_refused_and_changes_nothing(build, tmp_path, change, message):
    tensors = lora_tensors(build(trained=True))
    change(tensors)
    path = save(tensors, tmp_path / "a.safetensors")
    network, untouched = build(), build()
    with pytest.raises(BadFileError, match=message):
        load_lora(network, path)
    assert equal(network, untouched)


def test_layers_that_the_file_lacks_start_from_zero_and_are_reported(build, tmp_path):
    source = build(trained=True, network_args=("exclude_patterns=['.*fc2']",))
    network = build(network_weights=save(lora_tensors(source), tmp_path / "a.safetensors"))
    assert network.loaded.missing == tuple(f"blocks.{index}.mlp.fc2" for index in range(3))
    assert "3 start from zero" in network.loaded.note()
    assert not network.adapters["blocks.0.mlp.fc2"].weights.lora_up.weight.any()


def test_without_strict_the_caller_judges(build, tmp_path):
    tensors = lora_tensors(build(trained=True))
    tensors["other"] = torch.zeros(1)
    network = build()
    report = load_lora(network, save(tensors, tmp_path / "a.safetensors"), strict=False)
    assert report.unmatched == ("other",) and len(report.matched) == len(network.adapters)


def test_dim_from_weights_takes_layers_ranks_and_alphas_from_the_file(build, tmp_path):
    source = build(trained=True, network_dim=8, network_alpha=4.0)
    tensors = lora_tensors(source)
    for part, dim in (("lora_down", 0), ("lora_up", 1)):  # one layer at rank 3
        key = f"lora_unet_blocks_0_attn_qkv.{part}.weight"
        tensors[key] = tensors[key].narrow(dim, 0, 3).clone()
    tensors = {key: tensor for key, tensor in tensors.items() if "blocks_2" not in key}
    path = save(tensors, tmp_path / "a.safetensors")
    network = build(dim_from_weights=True, network_weights=path)
    ranks = {name: adapter.rank for name, adapter in network.adapters.items()}
    assert ranks == {
        **{f"blocks.{i}.{name}": 8 for i in range(2) for name in ("attn_qkv", "mlp.fc1", "mlp.fc2")},
        "blocks.0.attn_qkv": 3,
    }
    assert {adapter.alpha for adapter in network.adapters.values()} == {4.0}
    saved = lora_tensors(network)
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[key], tensors[key]) for key in saved)
    assert any("not in " in choice.excluded for choice in network.choices)


def test_dim_from_weights_refuses_another_models_file(build, tmp_path):
    path = save({"lora_te1_x.lora_up.weight": torch.ones(4, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(BadFileError, match="cannot give the ranks"):
        build(dim_from_weights=True, network_weights=path)
    pair = {"lora_te1_x.lora_up.weight": torch.ones(4, 2), "lora_te1_x.lora_down.weight": torch.ones(2, 4)}
    with pytest.raises(BadFileError, match="1 names belong to no layer of this model: lora_te1_x"):
        build(dim_from_weights=True, network_weights=save(pair, path))


def test_a_round_trip_through_a_file_is_exact(build, tmp_path):
    source = build(trained=True, network_alpha=37.3)
    path = save(lora_tensors(source), tmp_path / "a.safetensors")
    network = build(network_weights=path)
    again = lora_tensors(network)
    stored = load_file(path)
    assert again.keys() == stored.keys() and all(torch.equal(again[key], stored[key]) for key in stored)
    assert not match(network, read_lora(path))[1].faults
