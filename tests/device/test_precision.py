from __future__ import annotations

import pytest
import torch

from musubi_core.device.precision import autocast_dtype, dtype_of, pick_device
from musubi_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
        ("fp32", torch.float32),
        ("float", torch.float32),
        ("FLOAT32", torch.float32),
        (" torch.bfloat16 ", torch.bfloat16),
        ("fp8_e4m3fn", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_a_word_is_its_number_type(text: str, dtype: torch.dtype):
    assert dtype_of(text) is dtype


def test_an_unknown_number_type_names_the_choices():
    with pytest.raises(ConfigError, match=r"'bf15' is no number type; choose one of bf16, bfloat16"):
        dtype_of("bf15")


def test_mixed_precision_is_no_or_16_bits():
    assert autocast_dtype("no") is None
    assert autocast_dtype("bf16") is torch.bfloat16
    assert autocast_dtype("fp16") is torch.float16
    with pytest.raises(ConfigError, match="choose no, fp16 or bf16"):
        autocast_dtype("fp32")


def test_a_device_is_picked_by_name_or_the_best_there_is(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("CPU ") == torch.device("cpu")
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == pick_device("") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"'cuda' was asked for, .* none of that kind"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"'cuda:2' was asked for, .* 2 of that kind"):
        pick_device("cuda:2")
    with pytest.raises(ConfigError, match="'gpu' is no device; write cuda"):
        pick_device("gpu")
