"""Whatever a program calls the layers, a LoRA does the same to its model and beside another LoRA.

Oracle: the same LoRA in musubi-tuner's naming; for divided layers the rows of the model's own weight.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import ARCHITECTURES, converted, lora_file, lora_tensors, tiny_layers, underscored
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError
from musubi_core.lora_tools.base_model import open_base
from musubi_core.lora_tools.merge import merge_lora
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.lora_tools.module_names import known_models
from musubi_core.lora_tools.resize import resize_lora
from musubi_core.lora_tools.resize_config import ResizeConfig
from musubi_core.models.registry import architecture

TARGETS = ("comfyui", "diffusers", "peft", "other")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """Name, tiny network and a LoRA for every layer of it."""
    folder = tmp_path_factory.mktemp(request.param)
    dit = architecture(request.param).write_tiny(folder / "model", 0).dit
    return request.param, dit, lora_file(folder / "lora.safetensors", request.param)


def merged(output: Path, *loras: Path, **options) -> dict[str, torch.Tensor]:
    merge_lora(MergeConfig(lora_weight=loras, output_file=output, **options))
    return load_file(output)


@pytest.mark.parametrize("target", TARGETS)
def test_every_naming_merges_into_the_model_alike(model, tmp_path, target):
    name, dit, lora = model
    expected = merged(tmp_path / "a.safetensors", lora, dit=dit, architecture=name, save_precision="fp32")
    theirs = converted(lora, tmp_path / "theirs.safetensors", target, architecture=name)
    found = merged(tmp_path / "b.safetensors", theirs, dit=dit, architecture=name, save_precision="fp32")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_every_naming_merges_with_musubi_tuners_alike(model, tmp_path, target):
    name, dit, lora = model
    second = lora_file(tmp_path / "second.safetensors", name, seed=5)
    theirs = converted(second, tmp_path / "theirs.safetensors", target, architecture=name)
    for pair in ((lora, theirs), (theirs, lora)):
        merged(tmp_path / "both.safetensors", *pair, architecture=name)
        once = merged(
            tmp_path / "once.safetensors", tmp_path / "both.safetensors", dit=dit, architecture=name
        )
        apart = merged(tmp_path / "apart.safetensors", lora, second, dit=dit, architecture=name)
        for key, tensor in apart.items():
            step = 2**-7 if tensor.dtype == torch.bfloat16 else 2e-5  # one rounding of each result
            torch.testing.assert_close(once[key], tensor, rtol=step, atol=step)


def divided(name: str) -> tuple[str, tuple[str, ...]] | None:
    """A layer of the tiny network that diffusers has as several, and those."""
    theirs = known_models()[name].diffusers
    if theirs is None:
        return None
    return next(((one, theirs.names[one]) for one in tiny_layers(name) if len(theirs.names[one]) > 1), None)


def test_a_kind_without_a_rank_is_added_to_its_rows(model, tmp_path):
    name, dit, _ = model
    found = divided(name)
    if found is None:
        pytest.skip("diffusers divides no layer of this model")
    layer, (_, part, *_) = found
    with open_base(dit, name) as base:
        target = base.target(f"transformer.{part}")
        assert base.target(underscored(layer)).layer == target.layer  # as the file calls it
        before = base.weight(target.layer)
        key, width = base.names[f"{target.layer}.weight"], before.shape[1]
    assert (target.start, target.stop) == (width, 2 * width)
    torch.manual_seed(0)
    w1, w2 = torch.randn(2, 2), torch.randn(width // 2, width // 2)
    tensors = {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1.0)}
    save_file({f"transformer.{part}.{n}": t for n, t in tensors.items()}, tmp_path / "k.safetensors")
    after = merged(
        tmp_path / "m.safetensors",
        tmp_path / "k.safetensors",
        dit=dit,
        architecture=name,
        save_precision="fp32",
    )[key]
    expected = before.clone()
    expected[width : 2 * width] += torch.kron(w1, w2)
    torch.testing.assert_close(after, expected)


def test_recipes_compare_a_part_with_its_own_rows(model, tmp_path):
    name, dit, lora = model
    found = divided(name)
    if found is None:
        pytest.skip("diffusers divides no layer of this model")
    layer, parts = found
    theirs = converted(lora, tmp_path / "theirs.safetensors", "diffusers", architecture=name)
    with open_base(dit, name) as base:
        weight = base.weight(base.target(underscored(layer)).layer)
    whole, rated = load_file(theirs), {}
    with safe_open(theirs, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    alphas = settings["transformer.alpha_pattern"]
    for part, rows in zip(parts, weight.split(weight.shape[1]), strict=False):
        up, down = (whole[f"transformer.{part}.lora_{end}.weight"].double() for end in "BA")
        alpha = next((v for k, v in alphas.items() if part.endswith(k)), settings["transformer.lora_alpha"])
        s = torch.linalg.svdvals(up @ down * alpha / len(down))[: len(down)]
        rated[part] = s.log10() - rows.double().norm().log10()
    assert len(rated) >= 2
    threshold = float(torch.cat(list(rated.values())).median()) + 1e-6
    (path,) = resize_lora(
        ResizeConfig(
            path=theirs,
            output_file=tmp_path / "small.safetensors",
            recipe=f"fro_ckpt,thr={threshold}",
            dit=dit,
            architecture=name,
        )
    )
    small = load_file(path)
    for part, scores in rated.items():
        down = small.get(f"transformer.{part}.lora_A.weight", torch.empty(0, 1))
        assert len(down) == int((scores >= threshold).sum()), part


def test_what_cannot_stand_under_one_name_is_told_and_nothing_is_written(tmp_path):
    """q, k and v as three LoKr are no single LoKr, and beside them is a LoRA of the whole layer."""
    name = "flux_kontext"
    layer, parts = divided(name)
    kohya = {key: tensor for key, tensor in lora_tensors(name).items() if key.startswith(underscored(layer))}
    save_file(kohya, tmp_path / "a.safetensors")
    width = kohya[f"{underscored(layer)}.lora_down.weight"].shape[1]
    torch.manual_seed(0)
    lokr = {
        f"transformer.{part}.{end}": torch.randn(*size)
        for part in parts[:3]
        for end, size in (("lokr_w1", (2, 2)), ("lokr_w2", (width // 2, width // 2)))
    }
    save_file(lokr, tmp_path / "b.safetensors")
    with pytest.raises(BadFileError, match=r"b\.safetensors: transformer.* cannot be put under the names"):
        merged(
            tmp_path / "out.safetensors",
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            architecture=name,
            new_rank=4,
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_one_layer_under_two_names_of_one_file_is_refused(model, tmp_path):
    name, dit, lora = model
    found = divided(name)
    if found is None:
        pytest.skip("diffusers divides no layer of this model")
    layer, (part, *_) = found
    tensors = load_file(lora)
    down = tensors[f"{underscored(layer)}.lora_down.weight"]
    tensors[f"transformer.{part}.lora_A.weight"] = torch.ones(1, down.shape[1])
    tensors[f"transformer.{part}.lora_B.weight"] = torch.ones(down.shape[1], 1)
    save_file(tensors, tmp_path / "double.safetensors")
    with pytest.raises(BadFileError, match="twice"):
        merged(tmp_path / "m.safetensors", tmp_path / "double.safetensors", dit=dit, architecture=name)
    assert not (tmp_path / "m.safetensors").exists()
