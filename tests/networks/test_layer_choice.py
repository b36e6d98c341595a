"""Which layers get adapters."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from musubi_core.errors import ConfigError
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.networks.config import NetworkArgs
from musubi_core.networks.layer import layer_of
from musubi_core.networks.report import layer_reports, notes, summary
from musubi_core.networks.targets import Targets, choose_layers


def chosen(model: nn.Module, targets: Targets, **arguments) -> list[str]:
    choices = choose_layers(model, targets, NetworkArgs(**arguments))
    return [choice.layer.name for choice in choices if not choice.excluded]


def test_hunyuan_video_trains_the_240_layers_of_the_reference(hunyuan_targets):
    with torch.device("meta"):
        model = HunyuanVideo(HunyuanVideoConfig())
    double = ["attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2"]
    expected = {
        f"double_blocks.{block}.{stream}_{layer}"
        for block in range(20)
        for stream in ("img", "txt")
        for layer in double
    } | {f"single_blocks.{block}.linear{number}" for block in range(40) for number in (1, 2)}
    names = chosen(model, hunyuan_targets)
    assert len(names) == 240 and set(names) == expected
    own = chosen(model, hunyuan_targets, include_patterns=(r".*(img_mod|txt_mod|modulation).*",))
    assert len(own) == 240 + 20 * 2 + 40


def test_the_documents_single_block_example_selects_blocks_10_to_39(hunyuan_targets):
    with torch.device("meta"):
        model = HunyuanVideo(HunyuanVideoConfig())
    names = chosen(
        model,
        hunyuan_targets,
        exclude_patterns=(".*",),
        include_patterns=(r".*single_blocks\.\d{2}\.linear.*",),
    )
    assert names == [f"single_blocks.{block}.linear{number}" for block in range(10, 40) for number in (1, 2)]


def test_only_layers_inside_the_target_blocks_are_chosen(model, targets):
    assert "img_in" not in chosen(model, targets)
    assert "img_in" in chosen(model, Targets())  # no classes: the whole model


def test_include_brings_back_what_was_excluded_and_nothing_else(model, targets):
    with_norm = chosen(model, targets, include_patterns=(r"blocks\.0\.norm_linear",))
    assert set(with_norm) - set(chosen(model, targets)) == {"blocks.0.norm_linear"}
    only = chosen(model, targets, exclude_patterns=(".*",), include_patterns=(r".*\.attn_qkv",))
    assert only == [f"blocks.{index}.attn_qkv" for index in range(3)]


def test_a_pattern_must_match_the_whole_name():
    base = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert chosen(base, Targets(), exclude_patterns=(".*",), include_patterns=("1",)) == ["1"]
    assert len(chosen(base, Targets(), exclude_patterns=("1",))) == 11


@pytest.mark.parametrize("key", ["exclude_patterns", "include_patterns"])
def test_a_pattern_that_matches_nothing_names_the_nearest_layers(model, targets, key):
    with pytest.raises(
        ConfigError, match=rf"{key} 'attn_qkv'.*Nearest names: blocks.0.attn_qkv, blocks.1.attn_qkv"
    ):
        choose_layers(model, targets, NetworkArgs(**{key: ("attn_qkv",)}))


def test_excluding_everything_is_an_error(model, targets):
    with pytest.raises(ConfigError, match="No layer is left to train: 12 of 13 layers"):
        choose_layers(model, targets, NetworkArgs(exclude_patterns=(".*",)))


def test_names_are_refused_after_compilation(model, targets):
    model.blocks[0] = torch.compile(model.blocks[0])
    with pytest.raises(ValueError, match=re.escape("before torch.compile")):
        choose_layers(model, targets, NetworkArgs())


def test_a_quantised_linear_is_a_linear():
    class Quantised(nn.Module):
        in_features, out_features = 8, 24

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(24, 4, dtype=torch.uint8))  # packed

    layer = layer_of("a", Quantised())
    assert layer is not None and layer.shape == (24, 8)


def test_convolutions_larger_than_a_point_wait_for_conv_dim(build):
    base = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
    network = build(base, targets=Targets(), network_dim=8, network_alpha=2.0)
    assert {name: (a.rank, a.alpha) for name, a in network.adapters.items()} == {"0": (8, 2.0), "2": (8, 2.0)}
    assert "set conv_dim" in layer_reports(network)[1].excluded
    network = build(base, targets=Targets(), network_dim=8, network_args=("conv_dim=2", "conv_alpha=0"))
    assert (network.adapters["1"].rank, network.adapters["1"].alpha) == (2, 2.0)


def test_the_report_says_rank_and_strength_or_why_not(build):
    network = build(network_dim=8, network_alpha=2.0, network_args=("exclude_patterns=['.*fc1']",))
    by_name = {report.name: report for report in layer_reports(network)}
    qkv, fc1, outside = (by_name[name] for name in ("blocks.0.attn_qkv", "blocks.0.mlp.fc1", "img_in"))
    assert (qkv.kind, qkv.shape, qkv.rank, qkv.alpha, qkv.scale) == ("Linear", (24, 8), 8, 2.0, 0.25)
    assert (fc1.rank, fc1.excluded) == (0, "excluded by .*fc1")
    assert outside.excluded == "not inside Block"
    assert "rank 8, alpha 2: strength 0.25" in summary(network)
    verbose = notes(network, verbose=True)
    assert "blocks.0.mlp.fc1  Linear 16x24  excluded by .*fc1" in verbose[0] and verbose[1] == summary(
        network
    )
