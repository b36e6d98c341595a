"""Bytes and signed numbers."""

from __future__ import annotations

import pytest
import torch

from musubi_core.encoders.pixels import to_bytes, to_signed

CPU = torch.device("cpu")


def test_black_and_white_become_minus_one_and_one():
    frames = torch.tensor([0, 255, 127]).to(torch.uint8).reshape(1, 1, 1, 1, 3)
    signed = to_signed(frames, device=CPU, dtype=torch.float32)
    assert signed.shape == (1, 3, 1, 1, 1)
    assert signed.flatten().tolist() == pytest.approx([-1.0, 1.0, 127 / 127.5 - 1])


def test_every_byte_survives_a_round_trip():
    frames = torch.arange(256).to(torch.uint8).reshape(1, 1, 16, 16, 1).expand(1, 2, 16, 16, 3)
    assert torch.equal(to_bytes(to_signed(frames, device=CPU, dtype=torch.float32)), frames)
    assert torch.equal(to_bytes(to_signed(frames, device=CPU, dtype=torch.float16)), frames)


def test_numbers_out_of_range_are_clamped():
    assert to_bytes(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]
