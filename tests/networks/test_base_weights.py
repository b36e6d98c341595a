"""LoRA files merged into base weights while a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError
from musubi_core.networks.merging import weight_transform
from musubi_core.networks.saving import lora_tensors

SUBSTITUTIONS = (("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"))


@pytest.fixture
def files(build, tmp_path) -> list[Path]:
    """Two trained LoRAs of different rank and spelling for the same model."""
    paths = []
    for index, (rank, key_format) in enumerate([(4, "comfyui"), (2, "musubi")]):
        network = build(trained=True, seed=index, network_dim=rank, network_alpha=3.0)
        paths.append(tmp_path / f"{index}.safetensors")
        save_file(lora_tensors(network, key_format=key_format), paths[-1])
    return paths


def test_a_merged_model_equals_a_model_with_the_adapters_applied(build, model, files):
    x = torch.randn(2, 5, 4)
    networks = [
        build(network_dim=4, network_weights=files[0]),
        build(network_dim=2, network_weights=files[1]),
    ]
    for network, multiplier in zip(networks, (1.0, 0.5), strict=True):
        network.multiplier = multiplier
        network.apply_to(model)
    expected = model(x)
    for network in networks:
        network.remove()
    merge = weight_transform([(files[0], 1.0), (files[1], 0.5)], SUBSTITUTIONS)
    model.load_state_dict({name: merge(name, tensor) for name, tensor in model.state_dict().items()})
    assert merge.finish() == {files[0]: 9, files[1]: 9}
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_all_files_are_summed_first_and_rounded_once(model, files):
    merge = weight_transform([(files[0], 1.0), (files[1], -0.5)], SUBSTITUTIONS)
    weight = model.blocks[0].mlp["fc1"].weight.data.bfloat16()
    expected = weight.double()
    for path, multiplier, key, rank in ((files[0], 1.0, "mlp_0", 4), (files[1], -0.5, "mlp_fc1", 2)):
        tensors = load_file(path)
        up, down = (tensors[f"lora_unet_blocks_0_{key}.{part}.weight"] for part in ("lora_up", "lora_down"))
        expected += multiplier * 3.0 / rank * (up.double() @ down.double())
    merged = merge("blocks.0.mlp.fc1.weight", weight)
    assert merged.dtype is torch.float32  # rounded by the loader's cast alone
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=1e-6)


def test_tensors_that_no_file_changes_pass_untouched(model, files):
    merge = weight_transform([(files[0], 1.0)], SUBSTITUTIONS)
    for name in ("img_in.weight", "blocks.0.attn_qkv.bias", "blocks.0.norm_linear.weight"):
        tensor = model.state_dict()[name]
        assert merge(name, tensor) is tensor


def test_a_prefix_of_another_name_is_another_layer(tmp_path):
    """musubi-tuner's `startswith` would give `k` the tensors of `k_img`."""
    pair = {
        "lora_unet_k_img.lora_up.weight": torch.ones(4, 2),
        "lora_unet_k_img.lora_down.weight": torch.ones(2, 4),
    }
    save_file(pair, tmp_path / "a.safetensors")
    merge = weight_transform([(tmp_path / "a.safetensors", 1.0)], ())
    weight = torch.zeros(4, 4)
    assert merge("k.weight", weight) is weight
    assert torch.equal(merge("k_img.weight", weight), torch.full((4, 4), 2.0))


def test_a_name_that_was_never_used_is_an_error_with_the_nearest_layers(model, files):
    merge = weight_transform([(files[0], 1.0)], SUBSTITUTIONS)
    for name, tensor in model.state_dict().items():
        if not name.startswith("blocks.2.attn_qkv"):
            merge(name, tensor)
    message = r"1 names that belong to no layer .* lora_unet_blocks_2_attn_qkv \(nearest: blocks"
    with pytest.raises(BadFileError, match=message):
        merge.finish()


def test_a_foreign_file_is_refused_before_loading_when_the_names_are_known(files):
    with pytest.raises(BadFileError, match="9 names that belong to no layer"):
        weight_transform([(files[0], 1.0)], SUBSTITUTIONS, ["other.layer"])
    with pytest.raises(BadFileError, match="9 names that belong to no layer"):
        weight_transform([(files[0], 1.0)], SUBSTITUTIONS, [])


def test_a_transposed_adapter_is_refused(tmp_path):
    pair = {"lora_unet_a.lora_up.weight": torch.ones(8, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}
    save_file(pair, tmp_path / "a.safetensors")
    merge = weight_transform([(tmp_path / "a.safetensors", 1.0)], ())
    with pytest.raises(BadFileError, match=r"lora_down.weight is \[2, 4\].*\[4, 8\] needs \[2, 8\]"):
        merge("a.weight", torch.zeros(4, 8))


def test_two_spellings_of_one_layer_in_one_file_are_refused(tmp_path):
    bases = ("lora_unet_mlp_fc1", "lora_unet_mlp_0")
    shapes = {"lora_up": (4, 2), "lora_down": (2, 4)}
    tensors = {f"{base}.{part}.weight": torch.ones(shape) for base in bases for part, shape in shapes.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    merge = weight_transform([(tmp_path / "a.safetensors", 1.0)], SUBSTITUTIONS)
    with pytest.raises(BadFileError, match=r"has mlp.fc1 twice, as lora_unet_mlp_fc1 and lora_unet_mlp_0"):
        merge("mlp.fc1.weight", torch.zeros(4, 4))
