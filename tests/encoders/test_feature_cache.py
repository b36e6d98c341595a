"""What a VAE remembers between chunks may wait in host memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from musubi_core.encoders.feature_cache import HostCached, HostFeatures


class Remembering(nn.Module):
    """Adds what it remembers of the chunk before."""

    def forward(self, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None) -> torch.Tensor:
        if feat_cache is None:
            return x
        before = feat_cache[feat_idx[0]]
        assert before is None or before.device == x.device
        feat_cache[feat_idx[0]] = x.clone()
        return x if before is None else x + before


def test_marks_and_none_pass_through_and_tensors_come_back_equal():
    kept: list[Any] = [None, None, None]
    features = HostFeatures(kept, torch.device("cpu"))
    features[1], features[2] = "Rep", torch.arange(3)
    assert len(features) == 3
    assert features[0] is None and features[1] == "Rep"
    assert torch.equal(features[2], torch.arange(3))


def test_the_wrapped_model_gives_the_same_and_fills_the_list_it_was_given():
    model, kept = Remembering(), [None]
    wrapped, own = HostCached(model), [None]
    for chunk in torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0)):
        expected = model(chunk, feat_cache=own, feat_idx=[0])
        assert torch.equal(wrapped(chunk, feat_cache=kept, feat_idx=[0]), expected)
        assert torch.equal(kept[0], chunk)


def test_without_a_list_nothing_is_wrapped():
    assert torch.equal(HostCached(Remembering())(torch.ones(2)), torch.ones(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_the_list_holds_host_memory_only():
    kept: list[Any] = [None]
    wrapped = HostCached(Remembering())
    for value in (1.0, 2.0):
        result = wrapped(torch.full((2,), value, device="cuda"), feat_cache=kept, feat_idx=[0])
        assert kept[0].device.type == "cpu" and result.device.type == "cuda"
    assert result.tolist() == [3.0, 3.0]
