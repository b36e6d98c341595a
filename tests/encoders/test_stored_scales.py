"""Files that keep their weights as scaled float8."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from musubi_core.encoders.stored_scales import read_unscaled, without_helpers
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import open_checkpoint

WEIGHT = torch.tensor([[1.0, -2.0], [0.5, 4.0]])


@pytest.mark.parametrize("end", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25], [3.0]])])
def test_a_scale_beside_the_weight_is_multiplied_out(tmp_path, end, scale):
    path = tmp_path / "scaled.safetensors"
    save_file({"a.weight": WEIGHT.to(torch.float8_e4m3fn), f"a{end}": scale}, path)
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(read_unscaled(checkpoint, "a.weight"), WEIGHT * scale.reshape(-1, 1))


def test_weights_without_a_scale_are_read_as_they_are(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a.weight": WEIGHT.half(), "a.bias": WEIGHT[0]}, path)
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(read_unscaled(checkpoint, "a.weight"), WEIGHT.half())
        assert torch.equal(read_unscaled(checkpoint, "a.bias"), WEIGHT[0])


def test_packed_weights_are_refused_with_the_file_to_use_instead(tmp_path):
    path = tmp_path / "packed.safetensors"
    save_file({"a.weight": torch.zeros(2, 2, dtype=torch.uint8)}, path)
    with open_checkpoint(path) as checkpoint, pytest.raises(BadFileError, match=r"a\.weight .*uint8.*fp16"):
        read_unscaled(checkpoint, "a.weight")


def test_a_scale_of_another_size_is_refused(tmp_path):
    path = tmp_path / "blocks.safetensors"
    save_file({"a.weight": WEIGHT.to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(2, 4)}, path)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(BadFileError, match=r"a\.scale_weight has shape \[2, 4\]"),
    ):
        read_unscaled(checkpoint, "a.weight")


def test_scales_and_markers_are_no_weights():
    names = [
        "a.weight",
        "a.scale_weight",
        "a.weight_scale",
        "a.scale_input",
        "a.comfy_quant",
        "scaled_fp8",
        "b.bias",
    ]
    assert without_helpers(names) == ["a.weight", "b.bias"]


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 2)])
def test_a_scale_for_each_block_of_a_row_is_multiplied_out(tmp_path, shape):
    path = tmp_path / "blocks.safetensors"
    weight, scale = torch.ones(2, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    save_file(
        {"a.weight": weight.to(torch.float8_e4m3fn), "a.scale_weight": scale.reshape(shape).contiguous()},
        path,
    )
    with open_checkpoint(path) as checkpoint:
        assert read_unscaled(checkpoint, "a.weight").tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
