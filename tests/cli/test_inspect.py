"""`musubi inspect`: every file accounted for, and weights described without reading them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from musubi_core.cli.main import main
from musubi_core.files.tensor_writer import write_tensors

MODEL = ("--architecture", "hunyuan_video")  # buckets depend on it


def a_picture(path: Path, size: tuple[int, int], caption: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 120, 40)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def a_dataset(folder: Path, text: str = "") -> Path:
    file = folder / "my data set.toml"
    file.write_text(
        "[general]\nresolution = [256, 256]\nenable_bucket = true\n"
        f"[[datasets]]\nimage_directory = '{folder / 'ねこ pictures'}'\n{text}",
        encoding="utf-8",
    )
    return file


def test_every_picture_is_used_or_has_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures = tmp_path / "ねこ pictures"
    a_picture(pictures / "wide one.png", (320, 200), "a cat")
    a_picture(pictures / "square.png", (256, 256), "猫")
    a_picture(pictures / "silent.png", (256, 256), None)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    (pictures / "broken.txt").write_text("broken", encoding="utf-8")
    assert main(["inspect", *MODEL, str(a_dataset(tmp_path))]) == 0
    text = capsys.readouterr().out
    assert "2 of 4 files used" in text
    for name in ("wide one.png", "square.png", "silent.png", "broken.png"):
        assert name in text
    assert "buckets:" in text
    assert "256x256" in text


def test_an_empty_dataset_ends_with_2_after_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a_picture(tmp_path / "ねこ pictures" / "silent.png", (256, 256), None)
    assert main(["inspect", *MODEL, str(a_dataset(tmp_path))]) == 2
    seen = capsys.readouterr()
    assert "silent.png" in seen.out
    assert "0 usable items of 1 files" in seen.err


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a_picture(tmp_path / "ねこ pictures" / "a.png", (256, 256), "a")
    assert main(["inspect", *MODEL, str(a_dataset(tmp_path, "num_repeat = 2\n"))]) == 2
    error = capsys.readouterr().err
    assert "num_repeat" in error
    assert "num_repeats" in error


def test_weights_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "some lora.safetensors"
    tensors = {
        "lora_unet_a.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_a.alpha": torch.tensor(1.0, dtype=torch.bfloat16),
    }
    write_tensors(file, tensors, {"ss_network_dim": "4", "ss_long": "x" * 500})
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert "2 tensors, 33 numbers: 32 float32, 1 bfloat16" in text
    assert "lora_unet_a.lora_down.weight 4x8 float32" in text
    assert "lora_unet_a.alpha scalar bfloat16" in text
    assert "ss_network_dim = 4" in text
    assert "LoRA that cannot be used" in text and "other tensors of a lora are missing" in text
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("name", ["nowhere.toml", "nowhere.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert f"{name} does not exist" in capsys.readouterr().err


def test_a_truncated_file_is_our_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.zeros(100)})
    file.write_bytes(file.read_bytes()[:-50])
    assert main(["inspect", str(file)]) == 2
    assert "a.safetensors" in capsys.readouterr().err


def test_an_unknown_architecture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a_picture(tmp_path / "ねこ pictures" / "a.png", (256, 256), "a")
    assert main(["inspect", *MODEL, str(a_dataset(tmp_path)), "--architecture", "hunyuan_vide"]) == 2
    assert "Did you mean hunyuan_video" in capsys.readouterr().err


def test_a_task_decides_the_sizes_of_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The VAE of Wan 2.2's 5B model halves the sides once more, so its buckets are 32 pixels apart."""
    a_picture(tmp_path / "ねこ pictures" / "a.png", (600, 300), "a cat")
    dataset = str(a_dataset(tmp_path))
    assert main(["inspect", dataset, "--architecture", "wan"]) == 0
    assert "368x176" in capsys.readouterr().out
    assert main(["inspect", dataset, "--architecture", "wan", "--task", "ti2v-5B"]) == 0
    assert "320x192" in capsys.readouterr().out
    assert main(["inspect", dataset, "--architecture", "wan", "--task", "ti2v-6B"]) == 2
    assert "ti2v-5B" in capsys.readouterr().err
    assert main(["inspect", dataset, *MODEL, "--task", "ti2v-5B"]) == 2
    assert "hunyuan_video has no tasks" in capsys.readouterr().err
