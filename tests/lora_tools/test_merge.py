"""Oracles: dense sums of the changes, a dense SVD of them, and LyCORIS' published formulas."""

from __future__ import annotations

import re

import pytest
import torch
from dense_loras import dense, lora_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Note
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.models.registry import architecture, architectures
from musubi_core.networks.naming import file_name

A, B, CONV = "lora_unet_blocks_0_attn_q", "lora_unet_blocks_1_attn_q", "lora_unet_patch"
LAYERS = {A: (24, 16), B: (24, 16), CONV: (12, 6, 3, 3)}


@pytest.fixture
def pair(tmp_path):
    first = lora_file(tmp_path / "a.safetensors", LAYERS, rank=3, alpha=3.0, seed=1)
    return first, lora_file(tmp_path / "b.safetensors", {A: (24, 16)}, rank=5, alpha=1.0, seed=2)


def merged(paths, tmp_path, **options):
    events = []
    config = MergeConfig(lora_weight=tuple(paths), output_file=tmp_path / "out" / "m.safetensors", **options)
    (path,) = merge_lora(config, events.append)
    return path, events


def nothing_written(tmp_path):
    return not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("multipliers", [(1.0, 1.0), (0.7, -1.5), (-1.0, 0.25)])
def test_joined_loras_are_the_weighted_sum_of_any_sign(pair, tmp_path, multipliers):
    path, _ = merged(pair, tmp_path, lora_multiplier=multipliers)
    whole = multipliers[0] * dense(pair[0], A) + multipliers[1] * dense(pair[1], A)
    torch.testing.assert_close(dense(path, A), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense(path, CONV), multipliers[0] * dense(pair[0], CONV), rtol=1e-5, atol=1e-6)
    found = load_file(path)
    assert found[f"{A}.lora_down.weight"].shape == (8, 16) and found[f"{A}.alpha"] == 8


def test_a_lower_rank_loses_the_discarded_singular_values(pair, tmp_path):
    path, _ = merged(pair, tmp_path, lora_multiplier=(1.0, -0.5), new_rank=4)
    whole = dense(pair[0], A) - 0.5 * dense(pair[1], A)
    lost = torch.linalg.svdvals(whole)[4:].norm()
    torch.testing.assert_close((whole - dense(path, A)).norm(), lost, rtol=1e-5, atol=1e-6)
    assert load_file(path)[f"{A}.alpha"] == 4 and len(load_file(path)[f"{B}.lora_down.weight"]) == 3


def test_energy_keeps_that_share_of_the_norm_with_the_fewest_directions(pair, tmp_path):
    path, _ = merged(pair, tmp_path, energy=0.9)
    s = torch.linalg.svdvals(dense(pair[0], A) + dense(pair[1], A))
    shares = (s.square().cumsum(0) / s.square().sum()).sqrt()
    assert len(load_file(path)[f"{A}.lora_down.weight"]) == int((shares < 0.9).sum()) + 1


@pytest.mark.parametrize("kib", [4, 5, 7])
def test_a_size_is_never_exceeded(pair, tmp_path, kib):
    path, _ = merged(pair, tmp_path, size=kib / 1024)
    assert kib * 1024 - 4000 < path.stat().st_size <= kib * 1024


def test_different_spellings_of_one_layer_are_one_layer(tmp_path):
    dotted, kohya = "diffusion_model.blocks.0.attn.q", A
    first = lora_file(tmp_path / "a.safetensors", {kohya: (8, 6)}, seed=1)
    second = lora_file(tmp_path / "b.safetensors", {dotted: (8, 6)}, seed=2)
    path, _ = merged([first, second], tmp_path)
    torch.testing.assert_close(
        dense(path, kohya), dense(first, kohya) + dense(second, dotted), rtol=1e-5, atol=1e-6
    )
    assert len(load_file(path)) == 3
    musubi = lora_file(tmp_path / "c.safetensors", {"lora_unet_double_blocks_0_img_mlp_fc1": (8, 6)}, seed=1)
    comfyui = lora_file(tmp_path / "d.safetensors", {"lora_unet_double_blocks_0_img_mlp_0": (8, 6)}, seed=2)
    path, _ = merged([musubi, comfyui], tmp_path)
    assert len(load_file(path)) == 3


def lycoris(path, seed=3):
    """LoHa on A, LoKr on B, a bias of A, and what they are as matrices."""
    torch.manual_seed(seed)
    loha = {
        "hada_w1_a": torch.randn(24, 2), "hada_w1_b": torch.randn(2, 16),
        "hada_w2_a": torch.randn(24, 2), "hada_w2_b": torch.randn(2, 16),
        "alpha": torch.tensor(1.0), "diff_b": torch.randn(24),
    }  # fmt: skip
    lokr = {"lokr_w1": torch.randn(4, 2), "lokr_w2": torch.randn(6, 8), "alpha": torch.tensor(9.0)}
    save_file({f"{A}.{n}": t for n, t in loha.items()} | {f"{B}.{n}": t for n, t in lokr.items()}, path)
    hadamard = (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"]) / 2
    return {A: hadamard.double(), B: torch.kron(lokr["lokr_w1"], lokr["lokr_w2"]).double()}, loha["diff_b"]


def test_other_kinds_become_lora_at_a_rank(pair, tmp_path):
    changes, bias = lycoris(tmp_path / "ly.safetensors")
    path, _ = merged([pair[0], tmp_path / "ly.safetensors"], tmp_path, new_rank=16, lora_multiplier=(1, 0.5))
    for name, change in changes.items():
        whole = dense(pair[0], name) + 0.5 * change
        torch.testing.assert_close(dense(path, name), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(load_file(path)[f"{A}.diff_b"], 0.5 * bias)
    with pytest.raises(ConfigError, match="no exact LoRA form"):
        merged([pair[0], tmp_path / "ly.safetensors"], tmp_path)


def test_what_a_rank_cuts_off_is_told_for_other_kinds_too(tmp_path):
    changes, _ = lycoris(tmp_path / "ly.safetensors")
    _, events = merged([tmp_path / "ly.safetensors"], tmp_path, new_rank=2)
    lost = {name: torch.linalg.svdvals(one)[2:].norm() / one.norm() for name, one in changes.items()}
    texts = "\n".join(event.text for event in events if isinstance(event, Note))
    assert f"at most {float(max(lost.values())):.2%} of a layer's change was cut off" in texts
    assert "blocks_*_attn_q: 2 layers" in texts


def test_metadata_says_what_was_merged_and_hashes_are_fresh(pair, tmp_path):
    for path in pair:
        save_file(
            load_file(path), path, {"ss_base_model_version": "x", "sshs_model_hash": "old", "ss_steps": "1"}
        )
    path, events = merged(pair, tmp_path, lora_multiplier=(1.0, -0.5))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["musubi_core.merged"] == "a.safetensors 1, b.safetensors -0.5"
    assert metadata["ss_base_model_version"] == "x" and "ss_steps" not in metadata
    assert len(metadata["sshs_model_hash"]) == 64
    assert any("3 layers of 2 LoRAs" in event.text for event in events if isinstance(event, Note))


@pytest.fixture(scope="module", params=[spec.name for spec in architectures()])
def model(request, tmp_path_factory):
    """A tiny base model of every architecture, and its layers of one block by the names of LoRA files."""
    folder = tmp_path_factory.mktemp(request.param)
    dit = architecture(request.param).write_tiny(folder, 0).dit
    weights = load_file(dit) if dit.suffix == ".safetensors" else torch.load(dit, weights_only=True)
    weights = weights.get("module", weights)
    names = [n for n, t in weights.items() if n.endswith(".weight") and t.ndim == 2 and "blocks.1." in n]
    bases = {"lora_unet_" + n.removesuffix(".weight").replace(".", "_"): n for n in names}
    return dit, weights, bases


def test_merging_into_a_model_adds_once_and_copies_the_rest(model, tmp_path):
    dit, weights, bases = model
    shapes = {base: tuple(weights[name].shape) for base, name in bases.items()}
    first = lora_file(tmp_path / "a.safetensors", shapes, seed=1)
    second = lora_file(tmp_path / "b.safetensors", shapes, seed=2)
    path, _ = merged([first, second], tmp_path, dit=dit, lora_multiplier=(0.5, -1.0))
    found = load_file(path)
    assert found.keys() == weights.keys()
    changed = {name: base for base, name in bases.items()}
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        if name not in changed:
            assert torch.equal(found[name], tensor)
            continue
        whole = tensor.double() + 0.5 * dense(first, changed[name]) - dense(second, changed[name])
        torch.testing.assert_close(
            found[name].double(), whole, rtol=2e-6 if tensor.dtype == torch.float32 else 1e-2, atol=1e-5
        )


def test_a_scaled_fp8_model_is_multiplied_out_and_becomes_bf16(model, tmp_path):
    _, weights, bases = model
    base, name = next(iter(bases.items()))
    packed = dict(weights)
    packed[name] = (weights[name].float() / 2).to(torch.float8_e4m3fn)
    packed[name.replace(".weight", ".scale_weight")] = torch.tensor(2.0)
    save_file({n: t.contiguous() for n, t in packed.items()}, tmp_path / "fp8.safetensors")
    lora = lora_file(tmp_path / "a.safetensors", {base: tuple(weights[name].shape)})
    path, _ = merged([lora], tmp_path, dit=tmp_path / "fp8.safetensors")
    found = load_file(path)
    assert found.keys() == weights.keys() and found[name].dtype == torch.bfloat16
    whole = packed[name].float() * 2 + dense(lora, base).float()
    torch.testing.assert_close(found[name].float(), whole, rtol=2**-8, atol=1e-6)  # one rounding


def test_bias_changes_and_other_kinds_go_into_a_model(model, tmp_path):
    dit, weights, bases = model
    base, name = next(iter(bases.items()))
    rows, columns = weights[name].shape
    bias = name.replace(".weight", ".bias")
    torch.manual_seed(0)
    w1, w2 = torch.randn(2, 2), torch.randn(rows // 2, columns // 2)
    tensors = {f"{base}.lokr_w1": w1, f"{base}.lokr_w2": w2}
    if bias in weights:
        tensors[f"{base}.diff_b"] = torch.randn(rows)
    save_file(tensors, tmp_path / "k.safetensors")
    path, _ = merged([tmp_path / "k.safetensors"], tmp_path, dit=dit, save_precision="fp32")
    found = load_file(path)
    torch.testing.assert_close(found[name], weights[name].float() + torch.kron(w1, w2))
    if bias in weights:
        torch.testing.assert_close(found[bias], weights[bias].float() + tensors[f"{base}.diff_b"])


def test_a_lora_of_another_model_or_size_leaves_no_file(model, pair, tmp_path):
    dit, _, bases = model
    with pytest.raises(BadFileError, match=r"3 layers that .* does not have"):
        merged([pair[0]], tmp_path, dit=dit)
    odd = lora_file(tmp_path / "odd.safetensors", {next(iter(bases)): (7, 5)})
    with pytest.raises(BadFileError, match=r"changes a weight of \[7, 5\]"):
        merged([odd], tmp_path, dit=dit)
    assert nothing_written(tmp_path)


COMFYUI = """
import json, logging, torch
import comfy.lora, comfy.model_detection, comfy.utils
folder = {folder!r}
weights = comfy.utils.load_torch_file(folder + "/model.safetensors")
config = comfy.model_detection.model_config_from_unet(weights, "")
model = config.get_model(config.process_unet_state_dict(weights), "")
keys = comfy.lora.model_lora_keys_unet(model, {{}})
left_over = []
logging.warning = lambda text, *args: left_over.append(text)
patches = comfy.lora.load_lora(comfy.utils.load_torch_file(folder + "/out/m.safetensors"), keys)
name = keys[{base!r}]
change = comfy.lora.calculate_weight(
    [(1.0, patches[name], 1.0, None, None)], torch.zeros({shape!r}), name
)
print(json.dumps([len(patches), left_over, change.tolist()]))
"""


def test_comfyui_loads_every_layer_of_a_merged_lora(in_comfyui, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden": 128, "heads": 1, "double_blocks": 2, "single_blocks": 2, "mlp_width": 512}
    weights = HunyuanVideo(HunyuanVideoConfig(**sizes, text_width=32)).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    spec = architecture("hunyuan_video")
    shapes = {
        file_name(name.removesuffix(".weight"), "comfyui", spec.lora_names.comfyui): tuple(
            weights[name].shape
        )
        for name in weights
        if name.endswith(".weight") and weights[name].ndim == 2 and re.search(r"blocks.1.*(_attn_|mlp)", name)
    }
    first = lora_file(tmp_path / "a.safetensors", shapes, seed=1)
    second = lora_file(tmp_path / "b.safetensors", shapes, seed=2)
    merged([first, second], tmp_path, lora_multiplier=(1.0, -0.5))
    base = next(iter(shapes))
    code = COMFYUI.format(folder=str(tmp_path), base=base, shape=shapes[base])
    count, left_over, change = in_comfyui(code)
    assert (count, left_over) == (len(shapes), [])
    torch.testing.assert_close(
        torch.tensor(change).double(), dense(first, base) - 0.5 * dense(second, base), rtol=1e-4, atol=1e-5
    )


def test_loras_that_do_not_belong_together_are_named(pair, tmp_path):
    other = lora_file(tmp_path / "c.safetensors", {A: (24, 20)})
    with pytest.raises(BadFileError, match="They are for different models"):
        merged([pair[0], other], tmp_path)
    foreign = lora_file(tmp_path / "d.safetensors", {"lora_unet_x": (4, 4)})
    with pytest.raises(BadFileError, match="no layer in common"):
        merged([pair[0], foreign], tmp_path)
    assert nothing_written(tmp_path)
    assert merged([pair[0], foreign], tmp_path, disjoint=True)
    save_file(load_file(pair[0]), pair[0], {"ss_base_model_version": "one"})
    save_file(load_file(pair[1]), pair[1], {"ss_base_model_version": "two"})
    with pytest.raises(BadFileError, match="different models by their ss_base_model_version"):
        merged(pair, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{A}.lora_up.weight": torch.ones(24, 2)}, "missing"),
        ({"x": torch.ones(2)}, "is no LoRA"),
        ({f"{A}.oft_blocks": torch.ones(2, 2, 2)}, "is oft"),
        (
            {f"{A}.lora_up.weight": torch.ones(24, 2) / 0, f"{A}.lora_down.weight": torch.ones(2, 16)},
            "contains NaN or infinity",
        ),
        (
            {
                f"{A}.{end}": torch.ones(2, 2)
                for end in ("lora_up.weight", "lora_down.weight", "dora_scale")
            },
            "is DoRA",
        ),
    ],
)  # fmt: skip
def test_foreign_and_broken_files_are_named_and_nothing_is_written(pair, tmp_path, tensors, message):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(BadFileError, match=message):
        merged([pair[0], tmp_path / "odd.safetensors"], tmp_path)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_multiplier": (1.0,)}, "2 LoRAs and 1 multipliers"),
        ({"lora_multiplier": (1.0, 0.0)}, "is 0 or not a number"),
        ({"size": 4.0, "new_rank": 2}, "chooses the ranks"),
        ({"size": 0.0001}, "Nothing is left"),
        ({"dit": "x", "new_rank": 2}, "a model has no rank"),
    ],
)
def test_options_that_make_no_sense_are_refused(pair, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        merged(pair, tmp_path, **({**options, "dit": tmp_path / "x"} if "dit" in options else options))
    assert nothing_written(tmp_path)


def test_a_file_given_twice_or_as_output_is_refused_and_a_stop_leaves_nothing(pair, tmp_path):
    with pytest.raises(ConfigError, match="given twice"):
        merged([pair[0], pair[0]], tmp_path)
    with pytest.raises(ConfigError, match="one of the inputs"):
        merge_lora(MergeConfig(lora_weight=pair, output_file=pair[1]))
    config = MergeConfig(lora_weight=pair, output_file=tmp_path / "out" / "m.safetensors")
    assert merge_lora(config, should_stop=lambda: True) == () and nothing_written(tmp_path)
