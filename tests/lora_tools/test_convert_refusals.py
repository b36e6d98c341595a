"""Nothing is lost in silence: what cannot be converted is named, and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from lora_files import converted, lora_file, lora_tensors, tiny_layers
from safetensors.torch import load_file, save_file

from musubi_core.cli.main import main
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import FileWritten, Note, Progress, Warned
from musubi_core.lora_tools.convert import convert_lora
from musubi_core.lora_tools.convert_config import ConvertConfig

NAME = "flux_kontext"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
FUSED = f"{QKV}.lora_down.weight"


def pair(base, rows=8, rank=2, columns=4):
    return {
        f"{base}.lora_down.weight": torch.ones(rank, columns),
        f"{base}.lora_up.weight": torch.ones(rows, rank),
    }


def written(tmp_path, tensors, name="in.safetensors"):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / name)
    return tmp_path / name


def attempt(tmp_path, tensors, target="comfyui", **options):
    """Convert these tensors; returns what was written and the events."""
    events = []
    output = tmp_path / "out" / "b.safetensors"
    options.setdefault("architecture", NAME)
    config = ConvertConfig(input=written(tmp_path, tensors), output=output, target=target, **options)
    convert_lora(config, events.append)
    return load_file(output), events


def extra(key, *shape):
    return lora_tensors(NAME) | {key: torch.ones(shape or (2,))}


ODD = {
    "a text encoder": (
        lora_tensors(NAME) | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        "comfyui",
        "lora_te1",
    ),
    "a typing error": (
        lora_tensors(NAME) | pair("lora_unet_double_block_0_img_attn_qkv"),
        "default",
        r"belong to no layer of flux_kontext.*nearest: double_blocks\.0\.img_attn\.qkv",
    ),
    "a foreign tensor": (extra("step"), "comfyui", "1 names belong to no layer.*step"),
    "IA3": (extra(f"{QKV}.on_input"), "comfyui", "on_input"),
    "LoHa for PEFT": (
        lora_tensors(NAME, kind="loha"),
        "diffusers",
        "PEFT has no form for a change of kind loha",
    ),
    "a bias for PEFT": (extra(f"{QKV}.diff_b", 384), "peft", "PEFT has no form for a change of kind diff"),
    "a Tucker LoRA for other": (
        extra(f"{QKV}.lora_mid.weight", 3, 3),
        "other",
        "middle matrix of a Tucker LoRA",
    ),
    "a negative alpha for other": (
        lora_tensors(NAME) | {f"{QKV}.alpha": torch.tensor(-1.0)},
        "other",
        "its alpha is -1.0, and a negative number has no root",
    ),
    "rows that do not fit": (
        lora_tensors(NAME) | pair(QKV, rows=100),
        "diffusers",
        "100 rows, which does not fit",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_has_no_place_is_an_error_and_allow_drop_leaves_out_only_that(tmp_path, case):
    tensors, target, message = ODD[case]
    with pytest.raises(BadFileError, match=message):
        attempt(tmp_path, tensors, target) if target != "peft" else converted(
            written(tmp_path, tensors), tmp_path / "out" / "b", "peft", architecture=NAME
        )
    assert not (tmp_path / "out").exists()
    if case == "LoHa for PEFT":
        with pytest.raises(BadFileError, match="nothing of it can be converted"):
            attempt(tmp_path, tensors, target, allow_drop=True)
    elif target != "peft":
        found, events = attempt(tmp_path, tensors, target, allow_drop=True)
        assert found and any("Left out" in event.text for event in events if isinstance(event, Warned))


def test_dora_on_some_layers_cannot_become_peft(tmp_path):
    with pytest.raises(BadFileError, match=r"1 of \d+ layers use DoRA, but PEFT knows all or none"):
        attempt(tmp_path, extra("lora_unet_img_in.dora_scale", 128, 1), "diffusers")


TWICE = {
    "two spellings": pair(QKV) | pair("diffusion_model.double_blocks.0.img_attn.qkv"),
    "whole and in parts": pair(QKV) | pair("transformer.transformer_blocks.0.attn.to_q"),
    "two parts alike": pair("transformer.transformer_blocks.0.attn.to_q")
    | pair("lora_transformer_transformer_blocks_0_attn_to_q"),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_layer_that_is_there_twice_is_refused(tmp_path, case):
    with pytest.raises(BadFileError, match=r"1 layers under two names: double_blocks\.0\.img_attn\.qkv \("):
        attempt(tmp_path, TWICE[case], allow_drop=True)
    assert not (tmp_path / "out").exists()


def test_nan_is_found_before_anything_is_written(tmp_path):
    tensors = lora_tensors(NAME)
    tensors[FUSED][0, 0] = torch.nan
    with pytest.raises(BadFileError, match=r"img_attn_qkv\.lora_down\.weight contains NaN"):
        attempt(tmp_path, tensors)
    assert not (tmp_path / "out").exists()


def test_damaged_and_empty_files_are_named(tmp_path):
    whole = lora_file(tmp_path / "whole.safetensors", NAME)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-10])
    for path, message in (
        (cut, "cut.safetensors ends before"),
        (tmp_path / "none.safetensors", "does not exist|No such"),
    ):
        with pytest.raises(BadFileError, match=message):
            converted(path, tmp_path / "b.safetensors", "comfyui")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "b.pt"}, "ends in .safetensors"),
        ({"output": "b.safetensors", "target": "peft"}, "give the name of a folder"),
        ({"output": "whole.safetensors"}, "output is the input itself"),
        ({"architecture": "flux_kontex"}, "Did you mean flux_kontext"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path, options, message):
    source = lora_file(tmp_path / "whole.safetensors", NAME)
    given = {"output": "b.safetensors", "target": "comfyui", **options}
    with pytest.raises(ConfigError, match=message):
        convert_lora(ConvertConfig(input=source, **{**given, "output": tmp_path / given["output"]}))


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    source = lora_file(tmp_path / "whole.safetensors", NAME)
    folder = converted(source, tmp_path / "peft", "peft")
    converted(source, folder, "peft")  # an older result may go
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"peft holds diary\.txt"):
        converted(source, folder, "peft")
    assert (folder / "diary.txt").read_text() == "mine"


def test_a_dry_run_lists_every_renaming_and_writes_nothing(tmp_path):
    events = []
    source = lora_file(tmp_path / "whole.safetensors", NAME)
    config = ConvertConfig(input=source, output=tmp_path / "b.safetensors", target="diffusers", dry_run=True)
    assert convert_lora(config, events.append) is None
    text = "\n".join(event.text for event in events if isinstance(event, Note))
    assert (
        "2 x lora_unet_double_blocks_N_img_attn_qkv  ->  transformer.transformer_blocks.N.attn.to_q + "
        in text
    )
    counted = sum(int(line.split(" x ")[0]) for line in text.splitlines() if " x " in line)
    assert counted == len(tiny_layers(NAME))
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]


def test_readers_that_ignore_alpha_in_the_header_are_warned_of(tmp_path):
    _, events = attempt(tmp_path, lora_tensors(NAME), "diffusers")
    assert any("ComfyUI would use the wrong strength" in e.text for e in events if isinstance(e, Warned))
    _, events = attempt(tmp_path, lora_tensors(NAME, alpha=3.0), "diffusers")
    assert not any(isinstance(event, Warned) for event in events)
    hunyuan = lora_tensors("hunyuan_video")
    _, events = attempt(tmp_path, hunyuan, "default", architecture="hunyuan_video", lora_key_format="musubi")
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert "ComfyUI ignores" in warning and "fc1" in warning


@pytest.mark.parametrize("stop_at", [0, 5, 80])
def test_a_stop_leaves_no_file(tmp_path, stop_at):
    source = lora_file(tmp_path / "whole.safetensors", NAME)
    events = []
    config = ConvertConfig(input=source, output=tmp_path / "out" / "b.safetensors", target="diffusers")
    stopped = convert_lora(
        config, events.append, lambda: sum(isinstance(e, Progress) for e in events) >= stop_at
    )
    assert stopped is None and not any(isinstance(event, FileWritten) for event in events)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_musubis_command_line_converts(tmp_path, capsys):
    source = lora_file(tmp_path / "musubi lora.safetensors", NAME)
    output = tmp_path / "another.safetensors"
    assert main(["convert_lora", "--input", str(source), "--output", str(output), "--target", "other"]) == 0
    assert all(key.startswith("diffusion_model.") for key in load_file(output))
    assert main(["convert-lora", "--input", str(source), "--output", str(output), "--target", "others"]) == 2
    assert "others" in capsys.readouterr().err


MEASURE = """
import re, sys
from pathlib import Path
from musubi_core.lora_tools.convert import convert_lora
from musubi_core.lora_tools.convert_config import ConvertConfig
from musubi_core.lora_tools.module_names import known_models
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
known_models()
before = peak()
convert_lora(ConvertConfig(input=Path(sys.argv[1]), output=Path(sys.argv[2]), target="diffusers"))
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Files of 50 and 150 MB, of layers of 6 MB each."""
    peaks = []
    for blocks in (8, 24):
        tensors = {}
        for block in range(blocks):
            base = f"lora_unet_single_blocks_{block}_linear1"
            tensors |= pair(base, rows=10752, rank=128, columns=1536) | {f"{base}.alpha": torch.tensor(1.0)}
        source = tmp_path / f"{blocks}.safetensors"
        save_file(tensors, source, {"ss_base_model_version": NAME})
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "b.safetensors")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 15, f"{peaks} MB"


def test_settings_of_peft_are_json_and_complete(tmp_path):
    folder = converted(lora_file(tmp_path / "whole.safetensors", NAME), tmp_path / "peft", "peft")
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA" and fields["r"] == 3 and not fields["use_dora"]
    names = {
        key.removeprefix("base_model.model.").rpartition(".lora_")[0]
        for key in load_file(folder / "adapter_model.safetensors")
    }
    assert set(fields["target_modules"]) == names
    assert "x_embedder" in names
