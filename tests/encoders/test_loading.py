"""Modules are filled strictly, once, and in the precision that was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from musubi_core.encoders.empty import empty
from musubi_core.encoders.loading import check_names, fill, prefix_before
from musubi_core.errors import BadFileError, Stopped
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.quantization.scheme import QuantisationConfig

PATH = Path("model.safetensors")


def info(*shape: int) -> TensorInfo:
    return TensorInfo(shape=shape, dtype="float32")


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["norm.weight"], ""),
        (["a.b.norm.weight"], "a.b."),
        (["a.b.norm.weight", "a.norm.weight"], "a."),
        (["layernorm.weight"], None),
        ([], None),
    ],
)
def test_a_prefix_ends_at_a_dot(names, prefix):
    assert prefix_before(names, "norm.weight") == prefix


def test_missing_and_unknown_names_are_both_reported():
    with pytest.raises(BadFileError, match=r"lacks 4 \(a, b, c, \.\.\.\) and has unknown 1 \(x\)"):
        check_names(dict.fromkeys("abcd", (1,)), {"x": info(1)}, path=PATH, what="thing")


def test_a_wrong_shape_names_both_shapes():
    with pytest.raises(BadFileError, match=r"a has shape \[2\], expected \[3\]"):
        check_names({"a": (3,)}, {"a": info(2)}, path=PATH, what="thing")


def test_unit_axes_are_forgiven_only_where_asked():
    check_names({"a": (4, 4)}, {"a": info(4, 4, 1, 1, 1)}, path=PATH, what="thing", unit_axes=True)
    for unit_axes, shape in ((False, (4, 4, 1, 1, 1)), (True, (4, 4, 1, 3, 1))):
        with pytest.raises(BadFileError):
            check_names({"a": (4, 4)}, {"a": info(*shape)}, path=PATH, what="thing", unit_axes=unit_axes)


def test_an_empty_module_has_no_memory_until_it_is_filled(tmp_path):
    wanted = {"weight": torch.randn(3, 2, 1, 1), "bias": torch.randn(3)}
    save_file({f"x.{name}": tensor for name, tensor in wanted.items()}, tmp_path / "a.safetensors")
    module = empty(lambda: nn.Linear(2, 3))
    assert module.weight.is_meta
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        fill(
            module,
            checkpoint,
            {"weight": "x.weight", "bias": "x.bias"},
            device=torch.device("cpu"),
            dtype_of=lambda name: torch.bfloat16 if name == "weight" else torch.float32,
        )
    assert torch.equal(module.weight, wanted["weight"].reshape(3, 2).bfloat16())
    assert torch.equal(module.bias, wanted["bias"])
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_loader_tells_how_far_it_is_and_can_be_stopped_at_any_tensor(tmp_path, quantised, threads):
    torch.set_num_threads(threads)
    path = tmp_path / "model.safetensors"
    save_file({f"blocks.{n}.weight": torch.randn(64, 64) for n in range(9)}, path)
    quantisation = QuantisationConfig(targets=("blocks",)) if quantised else None

    def load(watch) -> None:
        with torch.device("meta"):
            module = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(9))})
        with open_checkpoint(path) as checkpoint:
            fill(
                module,
                checkpoint,
                {name: name for name in module.state_dict()},
                device=torch.device("cpu"),
                dtype_of=lambda name: torch.float32,
                quantisation=quantisation,
                watch=watch,
            )

    told: list[tuple[int, int]] = []
    load(lambda done, total: told.append((done, total)))
    assert told[0] == (0, 9)
    assert told[-1] == (9, 9)
    assert told == sorted(told)
    for last in range(len(told)):
        asked: list[int] = []

        def stop(done: int, total: int, last=last, asked=asked) -> None:
            asked.append(done)
            if len(asked) > last:
                raise Stopped

        with pytest.raises(Stopped):
            load(stop)
        assert len(asked) == last + 1
    torch.set_num_threads(1)
