"""Oracles: a dense SVD of the whole change, and the rules of sd-scripts and resize_lora written out."""

from __future__ import annotations

import json

import pytest
import torch
from dense_loras import dense, lora_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Note
from musubi_core.lora_tools.rank_rules import kept_count
from musubi_core.lora_tools.recipe import parse_recipes
from musubi_core.lora_tools.resize import resize_lora
from musubi_core.lora_tools.resize_config import ResizeConfig
from musubi_core.models.registry import architectures

A, B, CONV = "lora_unet_blocks_0_attn_q", "lora_unet_blocks_1_attn_q", "lora_unet_patch"
LAYERS = {A: (24, 16), B: (24, 16), CONV: (12, 6, 3, 3)}


@pytest.fixture
def lora(tmp_path):
    return lora_file(tmp_path / "in" / "cat.safetensors", LAYERS, rank=6, alpha=3.0)


def resized(path, tmp_path, **options):
    events = []
    paths = resize_lora(
        ResizeConfig(path=path, output_file=tmp_path / "out" / "small.safetensors", **options), events.append
    )
    return paths, events


def ranks(path):
    return {n.removesuffix(".lora_down.weight"): len(t) for n, t in load_file(path).items() if "down" in n}


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_what_the_discarded_singular_values_say(lora, tmp_path, rank):
    (path,), _ = resized(lora, tmp_path, new_rank=rank)
    for name in LAYERS:
        whole = dense(lora, name)
        lost = torch.linalg.svdvals(whole)[rank:].norm()
        torch.testing.assert_close((whole - dense(path, name)).norm(), lost, rtol=1e-5, atol=1e-6)
        assert load_file(path)[f"{name}.alpha"] / rank == 0.5  # alpha / rank is the source's


@pytest.mark.parametrize("rank", [6, 64])
def test_at_full_rank_nothing_is_lost(lora, tmp_path, rank):
    (path,), _ = resized(lora, tmp_path, new_rank=rank)
    assert set(ranks(path).values()) == {6}
    for name in LAYERS:
        torch.testing.assert_close(dense(path, name), dense(lora, name), rtol=1e-5, atol=1e-6)


def test_convolutions_may_have_a_rank_of_their_own(lora, tmp_path):
    (path,), _ = resized(lora, tmp_path, new_rank=4, new_conv_rank=2)
    assert ranks(path) == {A: 4, B: 4, CONV: 2}
    assert load_file(path)[f"{CONV}.lora_down.weight"].shape == (2, 6, 3, 3)


def sd_scripts_count(s, method, param):
    """The published rule, on the singular values of the dense matrix."""
    if s[0] <= 1e-6:
        return 1
    if method == "sv_ratio":
        index = int((s > s[0] / param).sum())
    elif method == "sv_cumulative":
        index = int(torch.searchsorted(s.cumsum(0) / s.sum(), param)) + 1
    else:
        index = int(torch.searchsorted(s.square().cumsum(0) / s.square().sum(), param**2)) + 1
    return max(1, min(index, len(s) - 1)) + 1


@pytest.mark.parametrize(
    ("method", "param"),
    [
        *(("sv_ratio", param) for param in (1.01, 2.0, 5.0)),
        *(("sv_fro", param) for param in (0.3, 0.9)),
        *(("sv_cumulative", param) for param in (0.05, 0.6, 0.95)),
    ],
)
def test_dynamic_ranks_are_sd_scripts_counts(lora, tmp_path, method, param):
    (path,), _ = resized(lora, tmp_path, dynamic_method=method, dynamic_param=param)
    expected = {
        name: min(sd_scripts_count(torch.linalg.svdvals(dense(lora, name)), method, param), 6)
        for name in LAYERS
    }
    assert ranks(path) == expected


def test_counts_are_capped_and_a_layer_of_zeros_gets_one():
    s = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    assert kept_count(s, 16, "sv_ratio", 3.0, None) == 3  # two are above 8 / 3, and one more
    assert kept_count(s, 16, "sv_ratio", 3.0, 2) == 2
    assert kept_count(torch.zeros(4), 16, "sv_fro", 0.9, None) == 1


def test_recipes_are_read_as_resize_lora_reads_them():
    first, second = parse_recipes("fro_ckpt=1,thr=-3.55:spn_lora=3,params,size=32")
    assert (first.weights, first.thr, first.size) == ({"fro_ckpt": 1.0}, -3.55, None)
    assert (second.weights, second.size) == ({"spn_lora": 0.75, "params": 0.25}, 32.0)
    assert first.needs_base and not second.needs_base


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fro_chkpt=1,thr=-3", "fro_ckpt"),
        ("fro_ckpt=1", "how much to keep"),
        ("thr=-3", "no positive score weight"),
        ("fro_ckpt=0,thr=-3", "no positive score weight"),
        ("fro_ckpt=-1,spn_lora=3,thr=-3", "none below 0"),
        ("spn_lora,thr", "thr needs a value"),
        ("spn_lora,thr=x", "expected a number"),
        ("spn_lora,thr=nan", "expected a number"),
        ("spn_lora,spn_lora,thr=1", "twice"),
        ("spn_lora,size=0", "above 0"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_reason(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_recipes(text)


def test_spn_lora_keeps_what_is_at_least_a_share_of_the_largest(lora, tmp_path):
    (path,), _ = resized(lora, tmp_path, recipe="spn_lora=1,thr=-0.5")
    for name in LAYERS:
        s = torch.linalg.svdvals(dense(lora, name))
        assert ranks(path)[name] == int((s >= s[0] * 10**-0.5).sum())


@pytest.fixture(scope="module", params=[spec.name for spec in architectures()])
def model(request, tmp_path_factory):
    """A tiny base model of every architecture, and a LoRA for three of its layers by their real names."""
    spec = next(spec for spec in architectures() if spec.name == request.param)
    folder = tmp_path_factory.mktemp(request.param)
    dit = spec.write_tiny(folder, 0).dit
    weights = load_file(dit) if dit.suffix == ".safetensors" else torch.load(dit, weights_only=True)
    names = [n for n, t in weights.items() if n.endswith(".weight") and t.ndim == 2 and "blocks.1." in n][:3]
    named = {"lora_unet_" + n.removesuffix(".weight").replace(".", "_"): weights[n].double() for n in names}
    lora = lora_file(folder / "lora.safetensors", {n: tuple(w.shape) for n, w in named.items()}, rank=4)
    return dit, lora, named


def references(name, weight, change):
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    return {
        "spn_ckpt": torch.linalg.matrix_norm(weight, 2),
        "fro_ckpt": weight.norm(),
        "subspace": (u.T @ weight @ vh.T).diagonal()[:4].abs(),
        "params": torch.tensor(float(sum(weight.shape))),
        "fro_lora": s.norm(),
    }[name]


@pytest.mark.parametrize("text", ["fro_ckpt", "spn_ckpt", "subspace", "fro_ckpt=0.8,params=0.2", "fro_lora"])
def test_recipes_compare_with_the_base_model_of_every_architecture(model, tmp_path, text):
    dit, lora, named = model
    weights = {part.partition("=")[0]: float(part.partition("=")[2] or 1) for part in text.split(",")}
    rated = {}
    for name, weight in named.items():
        s = torch.linalg.svdvals(dense(lora, name))[:4]
        rated[name] = s.log10() - sum(
            w * references(key, weight, dense(lora, name)).log10() for key, w in weights.items()
        )
    values = torch.cat(list(rated.values())).sort().values
    threshold = float(values[4] + values[5]) / 2
    (path,), _ = resized(lora, tmp_path, recipe=f"{text},thr={threshold}", dit=dit)
    expected = {name: int((one >= threshold).sum()) for name, one in rated.items()}
    assert ranks(path) == {name: count for name, count in expected.items() if count}


def test_the_recipe_of_the_users_guide_works(model, tmp_path):
    dit, lora, _ = model
    (path,), _ = resized(lora, tmp_path, recipe="fro_ckpt=1,thr=-3.55", dit=dit)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["resize_params"])["weights"] == {"fro_ckpt": 1.0}
    assert len(metadata["sshs_model_hash"]) == 64


@pytest.mark.parametrize("kib", [4, 5, 6, 7])
def test_a_size_is_never_exceeded_and_well_used(tmp_path, kib):
    lora = lora_file(tmp_path / "cat.safetensors", {A: (40, 24), B: (40, 24)}, rank=12)
    (path,), _ = resized(lora, tmp_path, recipe=f"spn_lora,size={kib / 1024}")
    assert kib * 1024 - 2600 < path.stat().st_size <= kib * 1024


def test_a_size_above_that_of_the_file_keeps_everything(lora, tmp_path):
    (path,), _ = resized(lora, tmp_path, recipe="spn_lora,size=32")
    assert set(ranks(path).values()) == {6}


def test_rescale_multiplies_the_strength(lora, tmp_path):
    (path,), _ = resized(lora, tmp_path, recipe="spn_lora,thr=-9,rescale=1.5")
    torch.testing.assert_close(dense(path, A), 1.5 * dense(lora, A), rtol=1e-5, atol=1e-6)


def test_several_recipes_write_several_files(lora, tmp_path):
    paths, _ = resized(lora, tmp_path, recipe="spn_lora,thr=-0.2:spn_lora,thr=-0.5")
    assert [path.name for path in paths] == [f"small-spn_lora_thr-0.{n}.safetensors" for n in (2, 5)]
    assert ranks(paths[0])[A] < ranks(paths[1])[A]


def test_a_negative_alpha_and_a_tucker_core_keep_their_meaning(tmp_path):
    torch.manual_seed(0)
    parts = {
        "up": torch.randn(8, 3, 1, 1),
        "mid": torch.randn(3, 3, 3, 3),
        "down": torch.randn(3, 5, 1, 1),
    }
    tensors = {f"{CONV}.lora_{part}.weight": tensor for part, tensor in parts.items()}
    save_file(tensors | {f"{CONV}.alpha": torch.tensor(-6.0)}, tmp_path / "t.safetensors")
    (path,), _ = resized(tmp_path / "t.safetensors", tmp_path, new_rank=3)
    whole = -2 * torch.einsum(
        "op,pqkl,qi->oikl", parts["up"][..., 0, 0], parts["mid"], parts["down"][..., 0, 0]
    )
    torch.testing.assert_close(dense(path, CONV), whole.flatten(1).double(), rtol=1e-4, atol=1e-5)


def test_other_spellings_and_bias_changes_come_through(tmp_path):
    name = "transformer.blocks.0.attn.to_q"
    tensors = {
        f"{name}.lora_A.weight": torch.randn(4, 6).bfloat16(),
        f"{name}.lora_B.weight": torch.randn(8, 4).bfloat16(),
        f"{name}.diff_b": torch.arange(8.0),
    }
    packed = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    save_file(tensors, tmp_path / "peft.safetensors", {"lora_adapter_metadata": packed})
    (path,), _ = resized(tmp_path / "peft.safetensors", tmp_path, new_rank=4, save_precision="fp32")
    found = load_file(path)
    assert sorted(found) == sorted(tensors) and torch.equal(found[f"{name}.diff_b"], torch.arange(8.0))
    change = (
        found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
    )  # alpha is in it: rank = alpha now
    expected = tensors[f"{name}.lora_B.weight"].float() @ tensors[f"{name}.lora_A.weight"].float() / 2
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    with safe_open(path, "pt") as file:
        assert "lora_adapter_metadata" not in file.metadata()


def test_the_report_tells_each_kind_and_the_picture_is_drawn(lora, tmp_path):
    _, events = resized(lora, tmp_path, new_rank=3, plot=tmp_path / "s.png")
    notes = "\n".join(event.text for event in events if isinstance(event, Note))
    assert "blocks_*_attn_q: 2 layers, rank 6 to 3" in notes and "all: 3 layers" in notes
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_layer_without_any_change_is_left_out_by_recipes(lora, tmp_path):
    tensors = load_file(lora)
    tensors[f"{A}.lora_up.weight"].zero_()
    save_file(tensors, lora)
    (path,), events = resized(lora, tmp_path, recipe="spn_lora,thr=-9")
    assert set(ranks(path)) == {B, CONV}
    assert any("have learned nothing" in getattr(event, "text", "") for event in events)


def nothing_written(tmp_path):
    return not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.lora_up.weight": torch.ones(2, 2)}, "missing"),
        ({"a.weight": torch.ones(2, 2)}, "is no LoRA"),
        ({f"a.hada_w{n}_{p}": torch.ones(2, 2) for n in (1, 2) for p in "ab"}, "a is loha"),
        (
            {"a.lora_up.weight": torch.ones(2, 2), "a.lora_down.weight": torch.full((2, 2), float("nan"))},
            "contains NaN",
        ),
        (
            {f"a.{n}": torch.ones(2, 2) for n in ("lora_up.weight", "lora_down.weight", "dora_scale")},
            "a is DoRA",
        ),
        (
            {
                "a.lora_up.weight": torch.ones(2, 2),
                "a.lora_down.weight": torch.ones(2, 2),
                "b": torch.ones(1),
            },
            "b",
        ),
    ],
)
def test_foreign_and_broken_files_are_named_and_nothing_is_written(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(BadFileError, match=message):
        resized(tmp_path / "odd.safetensors", tmp_path, new_rank=1)
    assert nothing_written(tmp_path)


def test_a_lora_of_another_model_is_refused(model, lora, tmp_path):
    with pytest.raises(BadFileError, match=r"3 layers that .* does not have"):
        resized(lora, tmp_path, recipe="fro_ckpt,thr=-3", dit=model[0])
    assert nothing_written(tmp_path)


def test_numbers_too_large_for_the_format_are_refused(lora, tmp_path):
    tensors = {name: tensor * 1e6 for name, tensor in load_file(lora).items()}
    save_file(tensors, lora)
    with pytest.raises(BadFileError, match="NaN or infinity as float16"):
        resized(lora, tmp_path, new_rank=2, save_precision="fp16")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how far to go"),
        ({"new_rank": 4, "recipe": "spn_lora,thr=1"}, "chooses the ranks itself"),
        ({"dynamic_method": "sv_fro"}, "need each other"),
        ({"dynamic_method": "sv_fro", "dynamic_param": 2.0}, "between 0 and 1"),
        ({"dynamic_method": "sv_ratio", "dynamic_param": 0.5}, "above 1"),
        ({"recipe": "fro_ckpt,thr=-3"}, "give it with --dit"),
        ({"recipe": "spn_lora,thr=3"}, "keeps nothing"),
        ({"recipe": "spn_lora,size=0.0001"}, "keeps nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(lora, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        resized(lora, tmp_path, **options)
    assert nothing_written(tmp_path)


def test_the_file_itself_is_not_overwritten_and_a_stop_leaves_nothing(lora, tmp_path):
    with pytest.raises(ConfigError, match="is the LoRA itself"):
        resize_lora(ResizeConfig(path=lora, output_file=lora, new_rank=2))
    config = ResizeConfig(path=lora, output_file=tmp_path / "out" / "x.safetensors", new_rank=2)
    stops = iter([False] * 5 + [True] * 9)
    assert resize_lora(config, should_stop=lambda: next(stops)) == ()
    assert nothing_written(tmp_path)
