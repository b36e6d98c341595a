"""Every spelling of a LoRA file that other programs write becomes the same records."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from musubi_core.errors import BadFileError
from musubi_core.lora_tools.records import DORA, DOWN, UP, open_lora

NAME = "transformer.blocks.0.attn.to_q"


def pair(rank=4):
    torch.manual_seed(0)
    return torch.randn(rank, 6), torch.randn(8, rank)


def written(tmp_path, tensors, metadata=None, name="lora.safetensors"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_down.weight", ".lora_up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_A", ".lora_B"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_every_suffix_that_comfyui_reads_is_read(tmp_path, down, up):
    a, b = pair()
    path = written(tmp_path, {NAME + down: a, NAME + up: b, f"{NAME}.alpha": torch.tensor(2)})
    with open_lora(path) as source:
        (record,) = source.records
        assert (record.base, record.kind, record.rank, record.alpha) == (NAME, "lora", 4, 2.0)
        assert record.scale == 0.5 and not source.unknown
        tensors = source.read(record)
    assert torch.equal(tensors[DOWN], a) and torch.equal(tensors[UP], b)


LYCORIS = {
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "oft": ("oft_blocks",),
    "diff": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
}


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_kinds_are_told_apart(tmp_path, kind):
    path = written(
        tmp_path, {f"lora_unet_a.{part}": torch.randn(4, *[4] * (part != "diff_b")) for part in LYCORIS[kind]}
    )
    with open_lora(path) as source:
        assert [record.kind for record in source.records] == [kind]


def test_a_bias_change_stands_beside_a_lora_of_the_same_module(tmp_path):
    a, b = pair()
    parts = {
        ".lora_A.weight": a,
        ".lora_B.weight": b,
        ".diff_b": torch.ones(8),
        ".dora_scale": torch.ones(8, 1),
    }
    with open_lora(written(tmp_path, {NAME + part: tensor for part, tensor in parts.items()})) as source:
        assert {record.kind: set(record.keys) for record in source.records} == {
            "lora": {DOWN, UP, DORA},
            "diff": {"diff_b"},
        }


def alphas(path):
    with open_lora(path) as source:
        return {record.base: (record.alpha, record.alpha_source) for record in source.records}


def peft_pairs(prefix, *names):
    a, b = pair()
    return {
        f"{prefix}{name}.{part}.weight": tensor.clone()
        for name in names
        for part, tensor in (("lora_A", a), ("lora_B", b))
    }


SETTINGS = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn.to_q": 2.0, r"blocks\.\d+\.ff": 6}}


def test_alpha_comes_from_diffusers_header(tmp_path):
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in SETTINGS.items()})}
    tensors = peft_pairs("transformer.", "blocks.0.attn.to_q", "blocks.0.attn.to_k", "blocks.7.ff")
    tensors["transformer.blocks.0.attn.to_k.alpha"] = torch.tensor(3.0)
    assert alphas(written(tmp_path, tensors, header)) == {
        "transformer.blocks.0.attn.to_q": (2.0, "header"),
        "transformer.blocks.0.attn.to_k": (3.0, "tensor"),
        "transformer.blocks.7.ff": (6.0, "header"),
    }


@pytest.mark.parametrize("given", ["folder", "file"])
def test_alpha_comes_from_pefts_folder(tmp_path, given):
    path = written(
        tmp_path, peft_pairs("base_model.model.", "attn.to_q", "other"), name="peft/adapter_model.safetensors"
    )
    (path.parent / "adapter_config.json").write_text(json.dumps({**SETTINGS, "use_rslora": True}))
    found = alphas(path.parent if given == "folder" else path)
    assert found == {
        "base_model.model.attn.to_q": (4.0, "adapter_config.json"),  # 2 / sqrt(4) as alpha / rank
        "base_model.model.other": (16.0, "adapter_config.json"),
    }


def test_alpha_is_the_rank_when_nothing_states_it(tmp_path):
    assert alphas(written(tmp_path, peft_pairs("", "x.q"))) == {"x.q": (4.0, "rank")}


A, B = pair()
BAD = {
    "half a pair": (
        {"x.lora_A.weight": A},
        "x: has x.lora_A.weight, but other tensors of a lora are missing",
    ),
    "two ranks": ({"x.lora_A.weight": A, "x.lora_B.weight": B[:, :3].contiguous()}, "their ranks differ"),
    "two alphas": (
        {"x.lora_A.weight": A, "x.lora_B.weight": B, "x.alpha": torch.ones(2)},
        "should be one number",
    ),
    "alpha 0": ({"x.lora_A.weight": A, "x.lora_B.weight": B, "x.alpha": torch.zeros(())}, "its alpha is 0"),
    "one matrix twice": (
        {"x.lora_A.weight": A, "x.lora_down.weight": A.clone(), "x.lora_B.weight": B},
        "some of which mean the same",
    ),
    "two kinds": ({"x.lora_A.weight": A, "x.lokr_w1": B}, "lora and lokr at once"),
    "alpha alone": ({"x.alpha": torch.ones(())}, "no weights beside it"),
    "a network": ({"blocks.0.weight": A}, "is no LoRA"),
    "nothing": ({}, "is no LoRA"),
    "LoHa of two ranks": (
        {f"x.hada_w{n}_{side}": torch.ones(4, 3) for n in "12" for side in "ab"},
        "x.hada_w1_b is .4, 3. and x.hada_w1_a is .4, 3.; their ranks differ",
    ),
    "LoHa of two sizes": (
        {
            "x.hada_w1_a": torch.ones(4, 2),
            "x.hada_w1_b": torch.ones(2, 3),
            "x.hada_w2_a": torch.ones(5, 2),
            "x.hada_w2_b": torch.ones(2, 3),
        },
        "they do not fit each other",
    ),
    "a bias of another size": ({"x.diff": torch.ones(4, 3), "x.diff_b": torch.ones(5)}, "do not fit"),
    "a LoKr of a vector": ({"x.lokr_w1": torch.ones(4), "x.lokr_w2": torch.ones(4, 4)}, "expected a matrix"),
    "a LoKr in two forms": (
        {f"x.{part}": torch.ones(4, 4) for part in ("lokr_w1", "lokr_w1_a", "lokr_w2")},
        "which say different things",
    ),
    "an up matrix with a kernel": (
        {"x.lora_A.weight": torch.ones(4, 6, 3, 3), "x.lora_B.weight": torch.ones(8, 4, 3, 3)},
        "expected one number for each",
    ),
    "whole numbers": ({"x.lora_A.weight": A.long(), "x.lora_B.weight": B}, "lora_A.weight holds int64"),
    "a single number": ({"x.diff": torch.ones(())}, "expected numbers along every axis"),
    "a vector": ({"x.lora_A.weight": A[0].clone(), "x.lora_B.weight": B}, "expected a matrix"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_contradicts_itself_is_refused_by_name(tmp_path, case):
    tensors, message = BAD[case]
    with pytest.raises(BadFileError, match=message):
        open_lora(written(tmp_path, tensors))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a table"),
        ('{"transformer.lora_alpha": "x"}', "expected a number"),
        ('{"transformer.lora_alpha": NaN}', "expected a number"),
        ('{"transformer.alpha_pattern": {"(": 1}}', "is no pattern"),
        ('{"transformer.alpha_pattern": [1]}', "expected a table"),
    ],
)
def test_damaged_settings_are_named(tmp_path, text, message):
    path = written(tmp_path, peft_pairs("transformer.", "q"), {"lora_adapter_metadata": text})
    with pytest.raises(BadFileError, match=message):
        open_lora(path)


def test_nan_is_found_when_a_record_is_read_and_foreign_keys_are_listed(tmp_path):
    tensors = {"x.lora_A.weight": A, "x.lora_B.weight": B * torch.nan, "step": torch.ones(1)}
    with open_lora(written(tmp_path, tensors)) as source:
        with pytest.raises(BadFileError, match=r"x\.lora_B\.weight contains NaN"):
            source.read(source.records[0])
        with pytest.raises(BadFileError, match="1 tensors that belong to no known kind of adapter: step"):
            source.refuse_unknown()
