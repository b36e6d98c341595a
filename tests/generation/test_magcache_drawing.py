"""MagCache in whole drawings of tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musubi_core.errors import ConfigError
from musubi_core.events import Event, FileWritten, Note, Warned
from musubi_core.generation.draw import draw
from musubi_core.generation.magcache import magcache, ratio_tables
from musubi_core.generation.networks import sides
from musubi_core.models.registry import SPECS, architecture
from musubi_core.models.spec import LoadRequest
from musubi_core.offload.swap import swap
from musubi_core.sampling.magcache import always_computed, nearest, skip_plan
from musubi_core.sampling.magcache_config import MagCacheConfig, SkipRule
from musubi_core.sampling.magcache_tables import read_tables, shipped_tables

OFFERED = [name for name in SPECS if architecture(name).ratios_for is not None]
CPU = torch.device("cpu")
every = pytest.mark.parametrize("name", OFFERED)


def drawn(model: Any, conditions: Any, folder: Path, **settings: Any) -> tuple[Tensor | None, list[Event]]:
    """A drawing with these options of MagCache, and what was told."""
    told: list[Event] = []
    config = MagCacheConfig(**settings)
    with magcache(config, model.networks, conditions, folder=folder, tell=told.append) as wrapper:
        return draw(model.networks, conditions, wrapper=wrapper), told


def planned(ratios: Sequence[float], steps: int, **rule: Any) -> int:
    """How many steps are skipped; tests/sampling compares that with the reference algorithm."""
    settings = SkipRule(**rule)
    fixed = always_computed([0] * steps, settings.retention)
    return sum(skip_plan(nearest(ratios, steps), settings, fixed))


class Counted:
    """How often the first block of a network ran."""

    def __init__(self, model: Any, side: int = 0) -> None:
        self.runs = 0
        block: nn.Module = model.spec.blocks(model.networks.at_work(side))[0]
        self._hook = block.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


@every
@pytest.mark.parametrize("guided", [False, True])
def test_blocks_run_as_often_as_the_plan_says(tiny, tmp_path, name, guided):
    """50 steps with the shipped ratios; each branch of guidance by itself."""
    model = tiny(name)
    conditions = model.conditions(steps=50, cfg_scale=3.0 if guided else 1.0)
    with Counted(model) as counted:
        result, told = drawn(model, conditions, tmp_path, magcache_mag_ratios="0")
    variant = model.spec.ratios_for(model.options, (), conditions.size[-2:])
    tables = [one for one in shipped_tables() if (one.architecture, one.variant) == (name, variant)]
    table = max(tables, key=lambda one: one.steps)
    branches = ("cond", "uncond") if guided else ("cond",)
    expected = [planned(table.of(branch), 50) for branch in branches]
    total = 50 * len(branches)
    assert counted.runs == total - sum(expected)
    assert counted.runs < 0.6 * total
    assert result is not None and result.isfinite().all()
    first, last = told
    assert isinstance(first, Note) and f"{expected[0]} of 50 steps will be skipped" in first.text
    assert isinstance(last, Note)
    assert f"skipped {sum(expected)} of {total} evaluations" in last.text
    assert "Accumulated error: " in last.text


@every
@pytest.mark.parametrize("setting", ["magcache_threshold", "magcache_k"])
def test_with_threshold_or_k_0_the_picture_is_bitwise_the_uncached_one(tiny, tmp_path, name, setting):
    model = tiny(name)
    conditions = model.conditions(cfg_scale=3.0, steps=6)
    plain = draw(model.networks, conditions)
    cached, told = drawn(model, conditions, tmp_path, magcache_mag_ratios="0", **{setting: 0})
    assert torch.equal(cached, plain)
    assert ["0 of 6 steps" in event.text for event in told] == [True]


@every
def test_skipping_changes_the_picture_and_the_next_one_begins_anew(tiny, tmp_path, name):
    model = tiny(name)
    conditions = model.conditions(steps=8)
    settings = {"magcache_mag_ratios": "0", "magcache_threshold": 1.0}
    one, _ = drawn(model, conditions, tmp_path, **settings)
    two, _ = drawn(model, conditions, tmp_path, **settings)
    assert torch.equal(one, two)
    assert not torch.equal(one, draw(model.networks, conditions))


@every
def test_measured_ratios_are_used_as_the_shipped_ones(tiny, tmp_path, name):
    model = tiny(name)
    conditions = model.conditions(steps=10, cfg_scale=3.0)
    split = replace(conditions, settings=replace(conditions.settings, split_uncond=True))
    measured, told = drawn(model, conditions, tmp_path, magcache_calibration=True)
    assert torch.equal(measured, draw(model.networks, split)), "measuring changes no bit"
    written = told[-1]
    assert isinstance(written, FileWritten) and written.path.parent == tmp_path
    (table,) = read_tables(written.path)
    assert (table.architecture, table.steps, set(table.ratios)) == (name, 10, {"cond", "uncond"})
    assert table.variant in written.path.name
    assert table.details["latent"] == list(conditions.size)
    assert len(table.details["times"]) == 10

    settings = {"magcache_mag_ratios": str(written.path), "magcache_threshold": 0.5}
    with Counted(model) as counted:
        _, told = drawn(model, conditions, tmp_path, **settings)
    expected = [planned(table.of(branch), 10, threshold=0.5) for branch in ("cond", "uncond")]
    assert counted.runs == 20 - sum(expected)


def test_ratios_are_those_of_the_tokens_between_first_block_and_head(tiny, tmp_path):
    model = tiny("wan")
    network = model.networks.at_work(0)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    hooks = [
        network.blocks[0].register_forward_pre_hook(lambda _, given: entering.append(given[0].clone())),
        network.head.register_forward_pre_hook(lambda _, given: leaving.append(given[0].clone())),
    ]
    _, told = drawn(model, model.conditions(steps=4, cfg_scale=1.0), tmp_path, magcache_calibration=True)
    for hook in hooks:
        hook.remove()
    residuals = [after - before for before, after in zip(entering, leaving, strict=True)]
    lengths = [residual.double().norm(dim=-1) for residual in residuals]
    expected = [1.0, *(float((now / before).mean()) for before, now in pairwise(lengths))]
    assert isinstance(told[-1], FileWritten)
    (table,) = read_tables(told[-1].path)
    assert table.of("cond") == pytest.approx(expected, abs=2e-5)


def test_a_list_is_for_both_branches_unless_there_are_two(tiny, tmp_path):
    model = tiny("wan")
    conditions = model.conditions(steps=5, cfg_scale=3.0)
    still, restless = "1,1,1,1,1", "1,2,2,2,2"
    for given, runs in ((still, 2), (f"{still};{restless}", 1 + 5)):
        with Counted(model) as counted:
            drawn(model, conditions, tmp_path, magcache_mag_ratios=given)
        assert counted.runs == runs


def test_an_unknown_combination_is_drawn_uncached_and_says_so(tiny, tmp_path):
    model = tiny("wan/t2v-A14B")  # one network of the two
    conditions = model.conditions(cfg_scale=3.0)
    plain = draw(model.networks, conditions)
    cached, told = drawn(model, conditions, tmp_path, magcache_mag_ratios="0")
    assert torch.equal(cached, plain)
    (event,) = told
    assert isinstance(event, Warned)
    assert "none for wan t2v-A14B-one-network" in event.text
    assert "--magcache_calibration" in event.text


def test_an_architecture_that_does_not_offer_it_is_drawn_uncached_and_says_so(tiny, tmp_path):
    model = tiny("wan")
    model = replace(model, networks=replace(model.networks, spec=replace(model.spec, ratios_for=None)))
    conditions = model.conditions()
    cached, told = drawn(model, conditions, tmp_path, magcache_mag_ratios="0")
    assert torch.equal(cached, draw(model.networks, conditions))
    assert [type(event) for event in told] == [Warned]
    assert "not offered" in told[0].text


def test_without_its_options_nothing_is_wrapped_or_said(tiny, tmp_path):
    model = tiny("wan")
    told: list[Event] = []
    with magcache(
        MagCacheConfig(), model.networks, model.conditions(), folder=tmp_path, tell=told.append
    ) as wrapper:
        assert wrapper is None
    assert not told


@pytest.mark.parametrize(("task", "both"), [("t2v-A14B", True), ("i2v-A14B", False)])
def test_each_of_two_networks_begins_with_a_step_of_its_own(tiny, tmp_path, task, both):
    """As published: from text both networks skip, from a picture only the one for low noise."""
    model = tiny("wan/t2v-A14B")
    low, network = model.networks.experts[0], model.networks.at_work(0)
    asked: list[int] = []

    def at_work(side: int) -> nn.Module:
        asked.append(side)
        return network

    networks = replace(
        model.networks,
        experts=(replace(low, name="low_noise", t_max=0.875), replace(low, name="high_noise", t_min=0.875)),
        at_work=at_work,
        spec=replace(model.spec, ratios_for=lambda *_: task),
    )
    conditions = model.conditions(steps=20, cfg_scale=1.0, flow_shift=5.0)
    conditions = replace(conditions, settings=replace(conditions.settings, cfg_scales=(1.0, 1.0)))
    runs: list[int] = []
    hook = network.blocks[0].register_forward_hook(lambda *_: runs.append(asked[-1]))
    rule = {"magcache_threshold": 1.0, "magcache_k": 20, "magcache_retention_ratio": 0.0}
    drawn(replace(model, networks=networks), conditions, tmp_path, magcache_mag_ratios="0", **rule)
    hook.remove()
    high = sides(conditions.settings, networks.experts).count(1)
    assert high > 5
    assert runs.count(1) == (1 if both else high)
    assert 1 <= runs.count(0) < 20 - high


@every
def test_swapped_blocks_are_skipped_like_others(tiny, tmp_path, name):
    """A skipped step moves no weights, and the next computed one finds its blocks."""
    model = tiny(name)
    conditions = model.conditions(steps=12)
    settings = {"magcache_mag_ratios": "0", "magcache_threshold": 1.0}
    expected, _ = drawn(model, conditions, tmp_path, **settings)
    request = LoadRequest(path=model.files.dit, device=CPU, dtype=torch.float32, options=model.options)
    network = model.spec.load(request).eval()
    lists = model.spec.swap.lists(network) if model.spec.swap.lists else [model.spec.blocks(network)]
    held = swap(lists, [len(one) for one in lists], ring=1, device=CPU)
    swapped = replace(model, networks=replace(model.networks, at_work=lambda side: network))
    found, _ = drawn(swapped, conditions, tmp_path, **settings)
    held.release()
    assert torch.equal(found, expected)


def test_a_stopped_calibration_run_writes_nothing_and_says_so(tiny, tmp_path):
    model = tiny("wan")
    conditions = model.conditions(steps=4)
    told: list[Event] = []
    config = MagCacheConfig(magcache_calibration=True)
    steps: list[Any] = []
    with magcache(config, model.networks, conditions, folder=tmp_path, tell=told.append) as wrapper:
        draw(
            model.networks,
            conditions,
            wrapper=wrapper,
            on_step=steps.append,
            should_stop=lambda: len(steps) == 2,
        )
    assert not list(tmp_path.iterdir())
    assert [type(event) for event in told] == [Warned]
    assert "2 of 4 steps" in told[0].text


def test_an_error_while_drawing_is_the_one_that_is_seen(tiny, tmp_path):
    model = tiny("wan")
    told: list[Event] = []
    config = MagCacheConfig(magcache_calibration=True)
    with (
        pytest.raises(ZeroDivisionError),
        magcache(config, model.networks, model.conditions(), folder=tmp_path, tell=told.append),
    ):
        raise ZeroDivisionError
    assert not told and not list(tmp_path.iterdir())


def test_broken_ratios_are_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    for given in (str(tmp_path / "broken.json"), str(tmp_path / "missing.json"), "1.0,x"):
        with pytest.raises(ConfigError, match="--magcache_mag_ratios"):
            ratio_tables(MagCacheConfig(magcache_mag_ratios=given))


def test_settings_of_those_who_measured_are_named_where_they_differ(tiny, tmp_path):
    model = tiny("flux_kontext")
    _, told = drawn(model, model.conditions(), tmp_path, magcache_mag_ratios="0")
    assert "--magcache_threshold 0.05 --magcache_k 4 --magcache_retention_ratio 0.2" in told[0].text
    same = {"magcache_threshold": 0.05, "magcache_k": 4}
    _, told = drawn(model, model.conditions(), tmp_path, magcache_mag_ratios="0", **same)
    assert "--magcache_threshold" not in told[0].text


def test_a_prompt_may_have_settings_of_its_own(tiny, tmp_path):
    model = tiny("wan")
    flags = {"magcache_threshold": 0.5, "magcache_k": 3, "magcache_retention_ratio": 0.5}
    conditions = model.conditions(steps=20, cfg_scale=1.0, **flags)
    with Counted(model) as counted:
        drawn(model, conditions, tmp_path, magcache_mag_ratios="0")
    ratios = next(one for one in shipped_tables() if one.variant == "t2v-14B").of("cond")
    assert counted.runs == 20 - planned(ratios, 20, threshold=0.5, k=3, retention=0.5)
    assert counted.runs != 20 - planned(ratios, 20)
    assert drawn(model, conditions, tmp_path)[1] == [], "they do not turn it on"
