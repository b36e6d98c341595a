"""Oracles: a dense SVD of the difference, and a model that was changed by a known LoRA."""

from __future__ import annotations

import re

import pytest
import torch
from dense_loras import dense, lora_file
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Note, Warned
from musubi_core.lora_tools.extract import extract_lora
from musubi_core.lora_tools.extract_config import ExtractConfig
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.lora_tools.norms import leading_spectrum, spectral_norm
from musubi_core.models.registry import architecture, architectures


@pytest.fixture(scope="module", params=[spec.name for spec in architectures()])
def model(request, tmp_path_factory):
    """A tiny model of every architecture in float32, and three of its layers by the names of LoRA files."""
    folder = tmp_path_factory.mktemp(request.param)
    dit = architecture(request.param).write_tiny(folder, 0).dit
    weights = load_file(dit) if dit.suffix == ".safetensors" else torch.load(dit, weights_only=True)
    weights = {name: tensor.float() for name, tensor in weights.get("module", weights).items()}
    save_file(weights, folder / "org.safetensors")
    names = [
        n
        for n in weights
        if n.endswith(".weight") and weights[n].ndim == 2 and "blocks.1." in n and not re.search("mlp|mod", n)
    ]
    bases = {"lora_unet_" + n.removesuffix(".weight").replace(".", "_"): n for n in names[:3]}
    return folder / "org.safetensors", weights, bases


@pytest.fixture
def tuned(model, tmp_path):
    """The same model with a LoRA of rank 6 in three layers."""
    org, weights, bases = model
    lora = lora_file(
        tmp_path / "lora.safetensors", {b: tuple(weights[n].shape) for b, n in bases.items()}, rank=6
    )
    output = tmp_path / "tuned.safetensors"
    merge_lora(MergeConfig(lora_weight=(lora,), dit=org, output_file=output))
    return output, lora


def extracted(org, tuned, tmp_path, **options):
    events = []
    config = ExtractConfig(
        model_org=org, model_tuned=tuned, output_file=tmp_path / "out" / "x.safetensors",
        **{"save_precision": "fp32", **options},
    )  # fmt: skip
    return extract_lora(config, events.append), events


def nothing_written(tmp_path):
    return not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_lora_that_was_merged_comes_back_and_untouched_layers_do_not(model, tuned, tmp_path):
    org, _, bases = model
    (path,), events = extracted(org, tuned[0], tmp_path, dim=8)
    found = load_file(path)
    assert {name.partition(".")[0] for name in found} == set(bases)
    for base in bases:
        torch.testing.assert_close(dense(path, base), dense(tuned[1], base), rtol=1e-4, atol=1e-4)
        assert found[f"{base}.alpha"] == len(found[f"{base}.lora_down.weight"])
        up, down = found[f"{base}.lora_up.weight"], found[f"{base}.lora_down.weight"]
        assert up.norm() == pytest.approx(float(down.norm()), rel=1e-4)  # the strength is on both sides
    assert any("3 layers of" in event.text for event in events if isinstance(event, Note))


def test_a_lower_rank_misses_what_the_note_says(model, tuned, tmp_path):
    org, _, bases = model
    (path,), events = extracted(org, tuned[0], tmp_path, dim=3)
    whole = {base: dense(tuned[1], base) for base in bases}
    lost = sum(torch.linalg.svdvals(one)[3:].square().sum() for one in whole.values())
    share = float((lost / sum(one.square().sum() for one in whole.values())).sqrt())
    assert any(f"misses {share:.2%}" in event.text for event in events if isinstance(event, Note))
    assert any(
        f"all: {len(bases)} layers, rank 3, {share:.2%}" in e.text for e in events if isinstance(e, Note)
    )
    for base in bases:
        left = (whole[base] - dense(path, base)).norm()
        assert float(left) == pytest.approx(float(torch.linalg.svdvals(whole[base])[3:].norm()), rel=1e-3)


def test_energy_gives_each_layer_its_own_rank(model, tuned, tmp_path):
    org, _, bases = model
    (path,), _ = extracted(org, tuned[0], tmp_path, dim=32, energy=0.9)
    for base in bases:
        s = torch.linalg.svdvals(dense(tuned[1], base))
        shares = (s.square().cumsum(0) / s.square().sum()).sqrt()
        assert len(load_file(path)[f"{base}.lora_down.weight"]) == int((shares < 0.9).sum()) + 1


def test_biases_are_told_or_stored(model, tmp_path):
    org, weights, _ = model
    bias = next(name for name in weights if name.endswith(".bias") and "blocks.1." in name)
    save_file(weights | {bias: weights[bias] + 0.5}, tmp_path / "tuned.safetensors")
    with pytest.raises(ConfigError, match="Only biases and norms differ"):
        extracted(org, tmp_path / "tuned.safetensors", tmp_path)
    (path,), events = extracted(org, tmp_path / "tuned.safetensors", tmp_path, with_diff=True)
    ((name, change),) = load_file(path).items()
    assert name.endswith(".diff_b") and not [e for e in events if isinstance(e, Warned)]
    torch.testing.assert_close(change, torch.full_like(change, 0.5))


def test_a_clamp_limits_the_largest_numbers_only_when_asked(model, tuned, tmp_path):
    org, _, bases = model
    base = next(iter(bases))
    (path,), _ = extracted(org, tuned[0], tmp_path, dim=6)
    whole = {n: t for n, t in load_file(path).items() if n.startswith(base + ".lora")}
    (path,), _ = extracted(org, tuned[0], tmp_path, dim=6, clamp_quantile=0.9)
    sizes = torch.cat([t.flatten() for t in whole.values()]).abs()
    limit = max(float(load_file(path)[name].abs().max()) for name in whole)
    assert limit == pytest.approx(float(sizes.quantile(0.9)), rel=1e-2)


def test_large_layers_by_projection_equal_the_full_svd():
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(700, 400, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(500, 400, generator=generator))[0]
    matrix = (u * 0.93 ** torch.arange(400)) @ v.T
    found = leading_spectrum(matrix, 20, seed=1)
    torch.testing.assert_close(found.s, 0.93 ** torch.arange(20).double(), rtol=1e-4, atol=0)
    left = (matrix.double() - found.u * found.s @ found.vh).norm()
    assert float(left) == pytest.approx(float((0.93 ** torch.arange(20, 400).double()).norm()), rel=1e-3)
    again = leading_spectrum(matrix, 20, seed=1)
    assert torch.equal(found.u, again.u)


def test_the_spectral_norm_of_a_large_noisy_weight_is_that_of_a_full_svd():
    weight = torch.randn(900, 600, generator=torch.Generator().manual_seed(0))
    assert spectral_norm(weight) == pytest.approx(
        float(torch.linalg.matrix_norm(weight.double(), 2)), rel=1e-3
    )


def test_models_that_are_not_the_same_network_are_named(model, tmp_path):
    org, weights, bases = model
    name = next(iter(bases.values()))
    save_file({n: t for n, t in weights.items() if n != name}, tmp_path / "less.safetensors")
    with pytest.raises(BadFileError):
        extracted(org, tmp_path / "less.safetensors", tmp_path)
    save_file(weights | {name: weights[name] * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(BadFileError, match="NaN"):
        extracted(org, tmp_path / "nan.safetensors", tmp_path)
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BadFileError, match="is no"):
        extracted(org, tmp_path / "foreign.safetensors", tmp_path)
    save_file(weights, tmp_path / "same.safetensors")
    with pytest.raises(ConfigError, match="nothing to extract"):
        extracted(org, tmp_path / "same.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="are the same file"):
        extracted(org, org, tmp_path)
    assert nothing_written(tmp_path)


def test_a_stop_leaves_nothing(model, tuned, tmp_path):
    config = ExtractConfig(
        model_org=model[0], model_tuned=tuned[0], output_file=tmp_path / "out" / "x.safetensors"
    )
    calls = iter([False] * (len(model[1]) + 2) + [True] * 99)
    assert extract_lora(config, should_stop=lambda: next(calls)) == () and nothing_written(tmp_path)


def test_the_singular_values_are_drawn(model, tuned, tmp_path):
    extracted(model[0], tuned[0], tmp_path, plot=tmp_path / "values.png")
    assert (tmp_path / "values.png").read_bytes().startswith(b"\x89PNG")
