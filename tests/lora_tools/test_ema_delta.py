from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError
from musubi_core.lora_tools.ema import ema_merge
from musubi_core.lora_tools.ema_config import EmaConfig
from musubi_core.lora_tools.spectral import side_by_side, spectrum_of


def write(path, seed, shape=(16,), dtype=torch.float32, rank=3):
    draw = torch.Generator().manual_seed(seed)
    ones = [1] * (len(shape) - 1)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(rank, *shape, generator=draw).to(dtype),
        "lora_unet_a.lora_up.weight": torch.randn(12, rank, *ones, generator=draw).to(dtype),
        "lora_unet_a.alpha": torch.tensor(6.0),
    }
    save_file(tensors, path, {"ss_steps": str(seed), "ss_network_dim": str(rank)})
    return path


def delta(tensors):
    up, down = (
        tensors["lora_unet_a.lora_up.weight"].double(),
        tensors["lora_unet_a.lora_down.weight"].double(),
    )
    return up.flatten(1) @ down.flatten(1) * float(tensors["lora_unet_a.alpha"]) / down.shape[0]


@pytest.mark.parametrize("shape", [(16,), (4, 3, 3), (4, 1, 3, 3)])
def test_the_change_of_the_result_is_the_mean_of_the_changes_when_the_rank_is_enough(tmp_path, shape):
    paths = [write(tmp_path / f"{seed}.safetensors", seed, shape) for seed in (1, 2)]
    config = EmaConfig(
        path=tuple(paths), output_file=tmp_path / "out.safetensors", beta=(0.7,), average="delta", rank=6
    )
    (path,) = ema_merge(config)
    expected = 0.7 * delta(load_file(paths[0])) + 0.3 * delta(load_file(paths[1]))
    found = load_file(path)
    assert found["lora_unet_a.lora_down.weight"].shape == (6, *shape)
    torch.testing.assert_close(delta(found), expected, atol=1e-5, rtol=1e-5)


def test_a_lower_rank_loses_exactly_the_discarded_singular_values(tmp_path):
    paths = [write(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    config = EmaConfig(path=tuple(paths), output_file=tmp_path / "out.safetensors", average="delta")
    (path,) = ema_merge(config)
    expected = 0.95 * delta(load_file(paths[0])) + 0.05 * delta(load_file(paths[1]))
    dense = torch.linalg.svdvals(expected)
    assert float((delta(load_file(path)) - expected).norm()) == pytest.approx(
        float(dense[3:].norm()), rel=1e-5
    )


def test_several_averages_of_one_pass_equal_their_own_runs(tmp_path):
    run = tuple(write(tmp_path / f"{step}.safetensors", step) for step in (1, 2, 3))
    both = ema_merge(
        EmaConfig(path=run, output_file=tmp_path / "b.safetensors", beta=(0.5, 0.9), average="delta")
    )
    for path, beta in zip(both, (0.5, 0.9), strict=True):
        (alone,) = ema_merge(
            EmaConfig(path=run, output_file=tmp_path / "a.safetensors", beta=(beta,), average="delta")
        )
        assert path.read_bytes() == alone.read_bytes()


def test_nan_is_named_and_leaves_no_file(tmp_path):
    run = tuple(write(tmp_path / f"{step}.safetensors", step) for step in (1, 2))
    tensors = load_file(run[1])
    tensors["lora_unet_a.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, run[1], {"ss_steps": "2"})
    config = EmaConfig(path=run, output_file=tmp_path / "out" / "a.safetensors", average="delta")
    with pytest.raises(BadFileError, match=r"holds NaN or infinity in 2\.safetensors"):
        ema_merge(config)
    assert ema_merge(config, should_stop=lambda: True) == ()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_without_pairs_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_a.hada_w1_a": torch.zeros(2, 2)}, path)
    config = EmaConfig(path=(path,), output_file=tmp_path / "out.safetensors", average="delta")
    with pytest.raises(BadFileError, match="holds no LoRA pairs"):
        ema_merge(config)


def test_the_spectrum_of_a_product_is_that_of_the_dense_matrix():
    up, down = torch.randn(40, 5), torch.randn(5, 30)
    found = spectrum_of(*side_by_side([up, 2 * up], [down, down]))
    dense = torch.linalg.svdvals(3 * (up @ down).double())
    torch.testing.assert_close(found.s[:5], dense[:5], rtol=1e-6, atol=1e-6)
    assert float(found.s[5:].max()) < 1e-6
    torch.testing.assert_close(found.u * found.s @ found.vh, 3 * (up @ down).double(), atol=1e-5, rtol=1e-5)
