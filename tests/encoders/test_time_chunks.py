"""Convolutions cut in time give what the whole gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from musubi_core.encoders.time_chunks import TimeChunkedConv3d, chunk_convolutions


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("length", [3, 7, 8])
def test_a_cut_convolution_equals_the_whole(frames, kernel, stride, length):
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, kernel, stride=stride)
    x = torch.randn(2, 4, length, 6, 5)
    torch.testing.assert_close(TimeChunkedConv3d(conv, frames)(x), conv(x), rtol=0, atol=1e-6)


def test_no_piece_is_longer_than_asked():
    seen = []
    conv = nn.Conv3d(1, 1, 3)
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2]))
    TimeChunkedConv3d(conv, 4)(torch.randn(1, 1, 13, 3, 3))
    assert seen == [4, 4, 3]


def test_convolutions_that_pad_in_time_are_refused():
    with pytest.raises(ValueError, match="padded in time"):
        TimeChunkedConv3d(nn.Conv3d(1, 1, 3, padding=1), 2)


def test_every_convolution_of_a_model_is_cut_once():
    model = nn.Sequential(nn.Conv3d(1, 1, 3), nn.Sequential(nn.Conv3d(1, 1, 1), nn.SiLU()))
    x = torch.randn(1, 1, 6, 4, 4)
    before = model(x)
    chunk_convolutions(model, 2)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(TimeChunkedConv3d) == 2
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)
