"""LoRAs in `generate`: merged, at run time, chosen by pattern, saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generate_stage import drawn, far, tiny, write_lora
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.models.registry import SPECS
from musubi_core.models.wan.tiny import write_tiny_variant

every = pytest.mark.parametrize("name", SPECS)
LATENT: dict[str, Any] = {"output_type": "latent"}


@every
def test_merged_and_at_run_time_draw_the_same(name: str, tmp_path: Path):
    lora = write_lora(name, tmp_path / "lora.safetensors")
    other = write_lora(name, tmp_path / "other.safetensors", seed=1)
    given = {"lora_weight": [lora, other], "lora_multiplier": [1.0, -0.5], **LATENT}
    merged = drawn(name, tmp_path / "merged", **given).latent
    beside = drawn(name, tmp_path / "beside", lora_mode="runtime", **given).latent
    plain = drawn(name, tmp_path / "plain", **LATENT).latent
    assert far(merged, plain) > 0.01, "the LoRA changes the picture"
    assert far(beside, merged) < 1e-5


@every
def test_in_bf16_the_two_differ_by_the_rounding_of_weights_and_sums(name: str, tmp_path: Path):
    lora = write_lora(name, tmp_path / "lora.safetensors")
    given = {"lora_weight": [lora], "mixed_precision": "bf16", "infer_steps": 1, **LATENT}
    merged = drawn(name, tmp_path / "merged", **given).latent
    beside = drawn(name, tmp_path / "beside", lora_mode="runtime", **given).latent
    assert 0 < far(beside, merged) < 0.02


@every
def test_merging_equals_the_model_that_merge_lora_writes(name: str, tmp_path: Path):
    loras = [write_lora(name, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    merge_lora(
        MergeConfig(
            lora_weight=tuple(loras),
            lora_multiplier=(0.7, 1.5),
            dit=tiny(name).dit,
            output_file=tmp_path / "merged.safetensors",
            save_precision="fp32",
        )
    )
    expected = drawn(name, tmp_path / "a", dit=tmp_path / "merged.safetensors", **LATENT).latent
    given = {"lora_weight": loras, "lora_multiplier": [0.7, 1.5], **LATENT}
    assert far(drawn(name, tmp_path / "b", **given).latent, expected) < 1e-5


@every
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_saved_merged_model_draws_the_very_same_picture(name: str, precision: str, tmp_path: Path):
    lora = write_lora(name, tmp_path / "lora.safetensors")
    given = {"lora_weight": [lora], "lora_multiplier": [0.8], "mixed_precision": precision}
    direct = drawn(name, tmp_path / "direct", **given, **LATENT).latent
    target = tmp_path / "merged.safetensors"
    saved = drawn(name, tmp_path / "nothing", **given, save_merged_model=target)
    assert saved.written == (target,)
    assert not (tmp_path / "nothing").exists(), "nothing is drawn"
    again = drawn(name, tmp_path / "again", dit=target, mixed_precision=precision, **LATENT).latent
    assert torch.equal(again, direct)


def test_patterns_choose_the_layers_of_each_file(tmp_path: Path):
    """As if the file had only those layers: included ones, without the excluded ones."""
    lora = write_lora("wan", tmp_path / "lora.safetensors")
    part = tmp_path / "part.safetensors"
    chosen = {key: one for key, one in load_file(lora).items() if "blocks_1_" in key and "_ffn_" not in key}
    assert chosen
    save_file(chosen, part)
    expected = drawn("wan", tmp_path / "part", lora_weight=[part], **LATENT).latent
    for mode in ("merge", "runtime"):
        found = drawn(
            "wan",
            tmp_path / mode,
            lora_weight=[lora],
            include_patterns=[r"blocks\.1\."],
            exclude_patterns=["_ffn_"],
            lora_mode=mode,
            **LATENT,
        ).latent
        assert far(found, expected) < 1e-5


def test_a_lora_of_strength_zero_is_as_none(tmp_path: Path):
    lora = write_lora("wan", tmp_path / "lora.safetensors")
    plain = drawn("wan", tmp_path / "plain", **LATENT).latent
    off = drawn("wan", tmp_path / "off", lora_weight=[lora], lora_multiplier=[0.0], **LATENT).latent
    assert torch.equal(off, plain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_multiplier": [1.0, 2.0]}, "lora_multiplier has 2 values for 1 files"),
        ({"include_patterns": ["nowhere"]}, "none is left by --include_patterns 'nowhere'"),
        ({"exclude_patterns": ["blocks"]}, "none is left"),
        ({"include_patterns": ["("]}, "not a valid regular expression"),
        ({"lora_weight_high_noise": ["{lora}"]}, "is for a second network, and there is one"),
        ({"save_merged_model": "merged.pt"}, r"ends in \.safetensors"),
        ({"save_merged_model": "{dit}"}, "one of the files that are merged"),
        ({"save_merged_model": "merged.safetensors", "fp8": True}, "Leave --fp8 out"),
        ({"lora_weight": ["nowhere.safetensors"]}, "nowhere.safetensors does not exist"),
        ({"lora_weight": [], "save_merged_model": "m.safetensors"}, "has no LoRA to merge"),
    ],
)
def test_wrong_options_of_loras_are_refused_before_anything_is_loaded(
    tmp_path: Path, given: dict[str, Any], message: str
):
    lora = write_lora("wan", tmp_path / "lora.safetensors")

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.format(lora=lora, dit=tiny("wan").dit) if isinstance(value, str) else value

    options = {"lora_weight": [lora], **{key: filled(value) for key, value in given.items()}}
    with pytest.raises(ConfigError, match=message):
        drawn("wan", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_a_lora_of_another_model_is_refused(tmp_path: Path, mode: str):
    foreign = write_lora("flux_kontext", tmp_path / "foreign.safetensors")
    with pytest.raises(BadFileError, match=r"foreign\.safetensors has .* names that belong to no layer"):
        drawn("wan", tmp_path / "out", lora_weight=[foreign], lora_mode=mode)


def test_a_damaged_lora_is_refused(tmp_path: Path):
    tensors = load_file(write_lora("wan", tmp_path / "lora.safetensors"))
    first = next(key for key in tensors if key.endswith("up.weight"))
    tensors[first] = tensors[first] * float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(BadFileError, match="contains NaN"):
        drawn("wan", tmp_path / "out", lora_weight=[tmp_path / "nan.safetensors"])


def both_networks(folder: Path) -> dict[str, Any]:
    """Two unlike networks of Wan 2.2 A14B."""
    low = write_tiny_variant(folder / "low", 1, task="t2v-A14B")
    high = write_tiny_variant(folder / "high", 2, task="t2v-A14B")
    return {"dit": low.dit, "dit_high_noise": high.dit, "task": "t2v-A14B", "timestep_boundary": 0.8}


def test_each_of_two_networks_has_loras_of_its_own(tmp_path: Path):
    networks = both_networks(tmp_path)
    lora = write_lora("wan", tmp_path / "lora.safetensors", dit=networks["dit"])
    shared = {**networks, **LATENT, "infer_steps": 4}
    neither = drawn("wan", tmp_path / "0", **shared).latent
    low = drawn("wan", tmp_path / "1", lora_weight=[lora], **shared)
    high = drawn("wan", tmp_path / "2", lora_weight_high_noise=[lora], **shared)
    both = drawn("wan", tmp_path / "3", lora_weight=[lora], lora_weight_high_noise=[lora], **shared)
    latents = [neither, low.latent, high.latent, both.latent]
    for number, one in enumerate(latents):
        assert all(far(one, other) > 1e-3 for other in latents[:number])
    assert "Only the network for low noise gets a LoRA" in low.lines
    assert "Only the network for high noise gets a LoRA" in high.lines
    assert "Only the network" not in both.lines


def test_two_networks_with_loras_are_saved_as_two_files_that_draw_the_same(tmp_path: Path):
    networks = both_networks(tmp_path)
    lora = write_lora("wan", tmp_path / "lora.safetensors", dit=networks["dit"])
    given = {"lora_weight": [lora], "lora_weight_high_noise": [lora]}
    direct = drawn("wan", tmp_path / "a", **networks, **given, **LATENT).latent
    saved = drawn("wan", tmp_path / "b", **networks, **given, save_merged_model=tmp_path / "m.safetensors")
    assert [path.name for path in saved.written] == ["m_low_noise.safetensors", "m_high_noise.safetensors"]
    low, high = saved.written
    merged = {**networks, "dit": low, "dit_high_noise": high, **LATENT}
    assert torch.equal(drawn("wan", tmp_path / "c", **merged).latent, direct)


@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_swapped_blocks_change_nothing_with_loras(mode: str, tmp_path: Path):
    lora = write_lora("wan", tmp_path / "lora.safetensors")
    given = {"lora_weight": [lora], "lora_mode": mode, **LATENT}
    straight = drawn("wan", tmp_path / "a", **given).latent
    swapped = drawn("wan", tmp_path / "b", blocks_to_swap=1, **given)
    assert torch.equal(swapped.latent, straight)
    assert "wait in main memory" in swapped.lines


@every
def test_loras_are_merged_before_weights_become_fp8(name: str, tmp_path: Path):
    """So the result is as near to the full-precision one as fp8 without any LoRA is."""
    lora = write_lora(name, tmp_path / "lora.safetensors")
    given = {"lora_weight": [lora], "infer_steps": 1, **LATENT}
    exact = drawn(name, tmp_path / "a", **given).latent
    coded = drawn(name, tmp_path / "b", fp8=True, fp8_scaled=True, **given)
    plain = drawn(name, tmp_path / "c", infer_steps=1, **LATENT).latent
    plain8 = drawn(name, tmp_path / "d", fp8=True, fp8_scaled=True, infer_steps=1, **LATENT).latent
    assert "are in fp8, scaled" in coded.lines
    assert 0 < far(coded.latent, exact) < 3 * far(plain8, plain)
