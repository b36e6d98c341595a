"""The LoRA workshop from the command line: exit codes, files and reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musubi_core.cli.main import main
from musubi_core.models.registry import architecture

LAYER = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model and a LoRA for one of its layers."""
    dit = architecture("flux_kontext").write_tiny(tmp_path / "tiny", 0).dit
    rows, columns = load_file(dit)["double_blocks.0.img_attn.qkv.weight"].shape
    torch.manual_seed(0)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(4, columns),
        f"{LAYER}.lora_up.weight": torch.randn(rows, 4),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "cat.safetensors")
    return dit, tmp_path / "cat.safetensors"


def test_a_lora_is_merged_extracted_resized_and_inspected(
    model: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dit, lora = map(str, model)
    tuned, found, small = (str(tmp_path / f"{name}.safetensors") for name in ("tuned", "found", "small"))
    assert main(["merge-lora", lora, "--dit", dit, "--output_file", tuned, "--save_precision", "fp32"]) == 0
    extract = ["--model_org", dit, "--model_tuned", tuned, "--output_file", found, "--dim", "8"]
    assert main(["extract-lora", *extract, "--min_diff", "1e-2"]) == 0
    recipe = ["--recipe", "fro_ckpt=1,thr=-3.55", "--dit", dit]
    assert main(["resize-lora", found, "--output_file", small, *recipe]) == 0
    assert len(load_file(small)[f"{LAYER}.lora_down.weight"]) >= 4
    picture = tmp_path / "norms.png"
    assert main(["inspect", small, "--plot", str(picture)]) == 0
    assert "made for: flux_kontext" in capsys.readouterr().out and picture.is_file()


def test_bad_input_ends_with_2_and_leaves_nothing(model: tuple[Path, Path], tmp_path: Path):
    dit, lora = map(str, model)
    output = tmp_path / "out.safetensors"
    assert main(["resize-lora", lora, "--output_file", str(output)]) == 2
    assert main(["merge-lora", lora, lora, "--output_file", str(output)]) == 2
    assert (
        main(["extract-lora", "--model_org", dit, "--model_tuned", lora, "--output_file", str(output)]) == 2
    )
    assert not output.exists()
