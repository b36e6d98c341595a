"""Tensors that are made while the file is written."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made, write_tensors

INFOS = {
    "a": TensorInfo(shape=(4, 3), dtype="bfloat16"),
    "b": TensorInfo(shape=(5,), dtype="float32"),
    "c": TensorInfo(shape=(), dtype="int64"),
}


def made(name):
    info = INFOS[name]
    return torch.full(info.shape, ord(name), dtype=getattr(torch, info.dtype))


def test_made_tensors_give_the_same_file_as_given_ones(tmp_path):
    metadata = {"ss_steps": "7", "x": "y"}
    write_made(tmp_path / "made.safetensors", INFOS, made, metadata, sshs_hashes=True)
    write_tensors(
        tmp_path / "given.safetensors", {name: made(name) for name in INFOS}, metadata, sshs_hashes=True
    )
    assert (tmp_path / "made.safetensors").read_bytes() == (tmp_path / "given.safetensors").read_bytes()
    assert load_file(tmp_path / "made.safetensors")["a"][0, 0] == ord("a")


def test_only_one_made_tensor_is_alive_at_a_time(tmp_path):
    alive, most = [], []

    def make(name):
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        tensor = made(name)
        alive.append(weakref.ref(tensor))
        return tensor

    write_made(tmp_path / "a.safetensors", INFOS, make)
    assert max(most) == 0


@pytest.mark.parametrize("wrong", [torch.zeros(4, 4, dtype=torch.bfloat16), torch.zeros(4, 3)])
def test_a_tensor_that_is_not_what_was_announced_leaves_no_file(tmp_path, wrong):
    with pytest.raises(ValueError, match="a was announced as BF16"):
        write_made(tmp_path / "a.safetensors", INFOS, lambda name: wrong if name == "a" else made(name))
    assert list(tmp_path.iterdir()) == []
