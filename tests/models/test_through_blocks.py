"""Networks of every kind leave the way through their blocks to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flux_kontext_networks import make_inputs as kontext_inputs
from flux_kontext_networks import make_network as kontext_network
from torch import Tensor, nn
from wan_networks import KINDS, make_inputs, make_network

from musubi_core.models.flux_kontext.options import TrainOptions as KontextOptions
from musubi_core.models.flux_kontext.ratios import ratios_for as kontext_ratios
from musubi_core.models.hunyuan_video.options import TrainOptions as HunyuanOptions
from musubi_core.models.hunyuan_video.ratios import ratios_for as hunyuan_ratios
from musubi_core.models.wan.options import TrainOptions as WanOptions
from musubi_core.models.wan.ratios import ratios_for as wan_ratios
from musubi_core.sampling.magcache_tables import shipped_tables

Build = Callable[[], tuple[nn.Module, dict[str, Any]]]


def wan(task: str) -> Build:
    return lambda: (make_network(task), make_inputs(task))


@pytest.fixture(params=["hunyuan_video", "flux_kontext", *KINDS])
def network_and_inputs(request: pytest.FixtureRequest, hunyuan: Any, hunyuan_inputs: Any) -> Any:
    if request.param == "hunyuan_video":
        return hunyuan(), hunyuan_inputs()
    if request.param == "flux_kontext":
        return kontext_network(), kontext_inputs()
    return wan(request.param)()


def blocks_of(network: nn.Module) -> list[nn.Module]:
    names = ("blocks", "double_blocks", "single_blocks")
    return [block for name in names for block in getattr(network, name, ())]


def test_what_the_blocks_added_can_be_added_again_without_running_them(network_and_inputs):
    """To 1e-5 of what computing gives; the residual is taken as published: blocks in, blocks out, no head."""
    network, inputs = network_and_inputs
    kept: dict[str, Tensor] = {}

    def remember(blocks: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        after = blocks(tokens)
        kept["residual"] = after - tokens
        return after

    def add_again(blocks: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        assert tokens.shape == kept["residual"].shape
        return tokens + kept["residual"]

    computed = network(**inputs)
    assert torch.equal(network(**inputs, through=remember), computed), "looking on changes no bit"
    runs: list[nn.Module] = []
    for block in blocks_of(network):
        block.register_forward_hook(lambda block, *_: runs.append(block))
    again = network(**inputs, through=add_again)
    assert not runs
    torch.testing.assert_close(again, computed, atol=1e-5, rtol=1e-5)
    network(**inputs)
    assert runs == blocks_of(network), "the next question runs all of them again"


def test_the_head_follows_the_true_input_and_time(network_and_inputs):
    """A skipped step is no copy of the last answer: the embedding and the head still see what is new."""
    network, inputs = network_and_inputs
    residuals: list[Tensor] = []

    def remember(blocks: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        after = blocks(tokens)
        residuals.append(after - tokens)
        return after

    first = network(**inputs, through=remember)
    later = {**inputs, "x": 0.9 * inputs["x"], "t": 0.5 * inputs["t"]}
    skipped = network(**later, through=lambda blocks, tokens: tokens + residuals[0])
    assert not torch.allclose(skipped, first, atol=1e-3)


def test_text_is_not_among_the_tokens(hunyuan, hunyuan_inputs):
    shapes: list[torch.Size] = []
    given = kontext_inputs((4, 6), (6, 8))

    def look(blocks: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        after = blocks(tokens)
        shapes.extend([tokens.shape, after.shape])
        return after

    hunyuan()(**hunyuan_inputs(), through=look)
    kontext_network()(**given, through=look)
    frames, rows, columns = hunyuan_inputs()["x"].shape[2:]
    assert shapes[0] == shapes[1] == (2, frames * rows // 2 * columns // 2, 64)
    pictures = [given["x"], *given["references"]]
    cells = sum(-(-one.shape[-2] // 2) * -(-one.shape[-1] // 2) for one in pictures)
    assert shapes[2][1] == shapes[3][1] == cells


@pytest.mark.parametrize(
    ("options", "given", "pixels", "name"),
    [
        (WanOptions(), (), (832, 480), "t2v-14B"),
        (WanOptions(task="t2v-1.3B"), (), (832, 480), "t2v-1.3B"),
        (WanOptions(task="i2v-14B"), ("latents_image",), (832, 480), "i2v-14B-480p"),
        (WanOptions(task="i2v-14B"), ("latents_image",), (720, 1280), "i2v-14B-720p"),
        (WanOptions(task="t2v-A14B", dit_high_noise="x"), (), (832, 480), "t2v-A14B"),
        (WanOptions(task="i2v-A14B", dit_high_noise="x"), ("latents_image",), (832, 480), "i2v-A14B"),
        (WanOptions(task="ti2v-5B"), (), (1280, 704), "ti2v-5B-t2v"),
        (WanOptions(task="ti2v-5B"), ("latents_image",), (1280, 704), "ti2v-5B-i2v"),
    ],
)
def test_members_of_wan_have_published_ratios(options, given, pixels, name):
    assert wan_ratios(options, given, (pixels[1] // 8, pixels[0] // 8)) == name
    assert ("wan", name) in published()


@pytest.mark.parametrize("task", ["t2v-A14B", "t2i-14B", "flf2v-14B", "t2v-14B-FC"])
def test_where_nothing_was_published_no_other_ratios_are_taken(task):
    """One network of a pair that does all the work alone is not what was measured either."""
    assert ("wan", wan_ratios(WanOptions(task=task), (), (60, 104))) not in published()


def test_the_other_networks_have_published_ratios():
    assert hunyuan_ratios(HunyuanOptions(), (), (90, 160)) == "t2v-720p"
    assert hunyuan_ratios(HunyuanOptions(), (), (68, 120)) == "t2v-544p"
    assert hunyuan_ratios(HunyuanOptions(dit_in_channels=32), (), (90, 160)) == "i2v-720p"
    assert kontext_ratios(KontextOptions(), (), (128, 128)) == "dev"
    names = {("hunyuan_video", "t2v-720p"), ("hunyuan_video", "t2v-544p"), ("flux_kontext", "dev")}
    assert names <= published()


def published() -> set[tuple[str, str]]:
    return {(table.architecture, table.variant) for table in shipped_tables()}
