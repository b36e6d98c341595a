"""Oracle: musubi-tuner's documented recursion, written here in float64 (reference lora-and-fp8 4.1)."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Note, Warned
from musubi_core.lora_tools.ema import ema_merge
from musubi_core.lora_tools.ema_config import EmaConfig

LAYER = "lora_unet_double_blocks_0_img_attn_qkv"


def checkpoint(path, seed, *, step=None, alpha=4.0, dtype=torch.float32, rank=4):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(rank, 16, generator=generator).to(dtype),
        f"{LAYER}.lora_up.weight": torch.randn(24, rank, generator=generator).to(dtype),
        f"{LAYER}.alpha": torch.tensor(alpha),
        "count": torch.tensor([seed]),
    }
    metadata = {"ss_output_name": path.stem, "sshs_model_hash": "old"}
    if step is not None:
        metadata["ss_steps"] = str(step)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def run(tmp_path):
    return [checkpoint(tmp_path / f"cat-step{s:08d}.safetensors", s, step=s) for s in (500, 1000, 1500, 2000)]


def merged(paths, tmp_path, **options):
    events = []
    config = EmaConfig(path=tuple(paths), output_file=tmp_path / "out" / "ema.safetensors", **options)
    return ema_merge(config, events.append), events


def recursion(paths, betas):
    state = {name: tensor.double() for name, tensor in load_file(paths[0]).items()}
    for beta, path in zip(betas, paths[1:], strict=True):
        for name, tensor in load_file(path).items():
            state[name] = beta * state[name] + (1 - beta) * tensor.double()
    return state


@pytest.mark.parametrize(
    ("options", "betas"),
    [
        ({}, [0.95] * 3),
        ({"beta": (0.9,)}, [0.9] * 3),
        ({"beta": (0.9,), "beta2": 0.95}, [0.9, 0.925, 0.95]),
        ({"sigma_rel": (0.2,)}, [0.0, (1 / 2) ** 2.826214, (2 / 3) ** 2.826214]),
    ],
)
def test_the_average_is_musubi_tuners(run, tmp_path, options, betas):
    (path,), _ = merged(run, tmp_path, **options)
    found, expected = load_file(path), recursion(run, betas)
    for part in ("lora_down.weight", "lora_up.weight"):
        torch.testing.assert_close(
            found[f"{LAYER}.{part}"].double(), expected[f"{LAYER}.{part}"], atol=1e-6, rtol=1e-5
        )


def test_true_steps_weigh_by_the_time_between_checkpoints(run, tmp_path):
    (path,), _ = merged(run, tmp_path, sigma_rel=(0.2,), weighting="steps")
    name = f"{LAYER}.lora_up.weight"
    weights = [0.01988153, 0.12112034, 0.30250098, 0.55649714]
    expected = sum(w * load_file(p)[name] for w, p in zip(weights, run, strict=True))
    torch.testing.assert_close(load_file(path)[name], expected, atol=1e-6, rtol=1e-5)


def test_several_values_write_several_files_and_each_equals_its_own_run(run, tmp_path):
    paths, _ = merged(run, tmp_path, beta=(0.8, 0.9))
    assert [path.name for path in paths] == ["ema-beta0.8.safetensors", "ema-beta0.9.safetensors"]
    (alone,), _ = merged(run, tmp_path / "alone", beta=(0.9,))
    assert all(torch.equal(load_file(paths[1])[n], t) for n, t in load_file(alone).items())


def test_alpha_integers_and_number_formats_are_kept_and_hashes_are_fresh(tmp_path):
    paths = [
        checkpoint(tmp_path / f"a-{n:06d}.safetensors", n, dtype=torch.bfloat16, alpha=3.7) for n in (1, 2)
    ]
    (path,), _ = merged(paths, tmp_path)
    found = load_file(path)
    assert found[f"{LAYER}.lora_up.weight"].dtype == torch.bfloat16
    assert found[f"{LAYER}.alpha"] == torch.tensor(3.7) and found["count"].tolist() == [1]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_output_name"] == "a-000002"  # that of the newest
    assert len(metadata["sshs_model_hash"]) == 64 and metadata["musubi_core.ema"] == "beta=0.95"


def test_the_recorded_step_beats_the_name_and_the_name_beats_the_file_time(tmp_path):
    steps = ((1, 300), (2, 200), (3, 100))
    by_step = [checkpoint(tmp_path / f"{n}.safetensors", n, step=step) for n, step in steps]
    _, events = merged(by_step, tmp_path)
    text = next(event.text for event in events if isinstance(event, Note))
    assert "by the step recorded" in text and text.index("3.safetensors") < text.index("1.safetensors")

    by_name = [checkpoint(tmp_path / f"b-{n}.safetensors", n) for n in (10, 9)]
    _, events = merged(by_name, tmp_path)
    text = next(event.text for event in events if isinstance(event, Note))
    assert "by the number in the file names" in text and text.index("b-9.") < text.index("b-10.")

    by_time = [checkpoint(tmp_path / f"{name}.safetensors", 1) for name in ("new", "old")]
    os.utime(by_time[1], (1, 1))
    _, events = merged(by_time, tmp_path)
    text = next(event.text for event in events if isinstance(event, Note))
    assert "by modification time" in text and text.index("old.") < text.index("new.")


def test_files_in_other_number_formats_are_averaged_too(tmp_path):
    formats = (torch.bfloat16, torch.float32, torch.float16)
    run = [checkpoint(tmp_path / f"{n}.safetensors", n, step=n + 1, dtype=d) for n, d in enumerate(formats)]
    (path,), _ = merged(run, tmp_path, beta=(0.5,))
    found, expected = load_file(path)[f"{LAYER}.lora_up.weight"], recursion(run, [0.5] * 2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected[f"{LAYER}.lora_up.weight"].float().bfloat16())


def test_no_sort_takes_the_order_given(run, tmp_path):
    (path,), _ = merged(run[::-1], tmp_path, no_sort=True)
    name = f"{LAYER}.lora_up.weight"
    expected = recursion(run[::-1], [0.95] * 3)[name]
    torch.testing.assert_close(load_file(path)[name].double(), expected, atol=1e-6, rtol=1e-5)


def test_a_stored_average_asked_for_by_its_own_width_is_given_back(tmp_path):
    paths = []
    for step in (1000, 2000):
        for width in (0.05, 0.10):
            path = checkpoint(tmp_path / f"c-step{step:08d}-ema{width}.safetensors", step + int(width * 100))
            tensors = load_file(path)
            save_file(tensors, path, {"ss_steps": str(step), "musubi_core.ema_sigma_rel": str(width)})
            paths.append(path)
    (path,), events = merged(paths, tmp_path, sigma_rel=(0.10,), weighting="stored")
    name = f"{LAYER}.lora_up.weight"
    torch.testing.assert_close(load_file(path)[name], load_file(paths[3])[name], atol=1e-5, rtol=1e-5)
    assert not [event for event in events if isinstance(event, Warned)]
    _, events = merged(paths, tmp_path, sigma_rel=(0.25,), weighting="stored")
    assert any("more widths" in event.text for event in events if isinstance(event, Warned))


def test_plain_checkpoints_are_no_stored_averages(run, tmp_path):
    with pytest.raises(ConfigError, match="is no running average"):
        merged(run, tmp_path, sigma_rel=(0.2,), weighting="stored")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 8.0}, "alpha is 8 there and 4 here"),
        ({"rank": 8}, r"lora_down\.weight is \[8, 16\] there and \[4, 16\] here"),
    ],
)
def test_files_that_do_not_belong_together_are_named_and_nothing_is_written(run, tmp_path, changed, message):
    odd = checkpoint(tmp_path / "odd-step00003000.safetensors", 1, step=3000, **changed)
    with pytest.raises(BadFileError, match=message) as error:
        merged([*run, odd], tmp_path)
    assert "odd-step00003000" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_keys_are_named(run, tmp_path):
    tensors = load_file(run[1])
    tensors["extra.lora_up.weight"] = tensors.pop(f"{LAYER}.lora_up.weight")
    save_file(tensors, run[1], {"ss_steps": "1000"})
    with pytest.raises(BadFileError, match=r"lacks lora_unet.*lora_up\.weight and also has extra"):
        merged(run, tmp_path)


def test_nan_is_named_and_leaves_no_file(run, tmp_path):
    tensors = load_file(run[2])
    tensors[f"{LAYER}.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, run[2], {"ss_steps": "1500"})
    with pytest.raises(BadFileError, match=r"lora_up\.weight holds NaN or infinity in cat-step00001500"):
        merged(run, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_given_twice_or_used_as_output_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="given twice"):
        merged([run[0], run[0]], tmp_path)
    with pytest.raises(ConfigError, match="is one of the checkpoints"):
        ema_merge(EmaConfig(path=tuple(run), output_file=run[0]))


def test_an_empty_file_is_refused(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(BadFileError, match="holds no tensors"):
        merged([tmp_path / "empty.safetensors"], tmp_path)


def test_a_stop_leaves_nothing(run, tmp_path):
    config = EmaConfig(path=tuple(run), output_file=tmp_path / "out" / "ema.safetensors")
    assert ema_merge(config, should_stop=lambda: True) == ()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_rel": (0.2,), "beta2": 0.9}, "beta2 has no meaning"),
        ({"weighting": "steps"}, "needs --sigma_rel"),
        ({"at_step": 5}, "at_step is for weighting stored"),
        ({"rank": 5}, "rank is for average delta"),
        ({"sigma_rel": (0.3,)}, r"at most 0\.2887"),
    ],
)
def test_options_that_exclude_each_other_are_refused(run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        merged(run, tmp_path, **options)
