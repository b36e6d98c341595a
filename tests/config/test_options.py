"""Options declared once: what a declaration accepts, refuses and says."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from musubi_core.config import ConfigError, build, coerce, option, options_of, values_of


def _percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError('expected a percentage such as "10%"')
    return float(text[:-1]) / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    network_dim: int = option(4, ge=1, le=256, help="Rank.", aliases=("rank",))
    network_args: tuple[str, ...] = option((), help="Extra arguments.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    dit: Path = option(help="The model.")
    learning_rate: float = option(1e-4, ge=0, help="Step size.")
    lr_warmup_steps: int | float = option(0, ge=0, help="Steps or share.", parse=_percent)
    mixed_precision: str = option("no", choices=("no", "bf16"), help="Precision.")
    gradient_checkpointing: bool = option(False, help="Save memory.")
    seed: int | None = option(None, help="Seed.")
    target_frames: tuple[int, ...] = option((1,), ge=1, help="Clip lengths.")
    adapter: Adapter = Adapter()
    source: Any = None  # not an option


def test_options_are_listed_in_order_with_nested_classes_in_place():
    assert [info.name for info in options_of(Run)] == [
        *("dit", "learning_rate", "lr_warmup_steps", "mixed_precision", "gradient_checkpointing"),
        *("seed", "target_frames", "network_dim", "network_args"),
    ]


def test_an_option_knows_its_type_and_limits():
    infos = {info.name: info for info in options_of(Run)}
    assert (infos["dit"].type, infos["dit"].required, infos["dit"].default) == (Path, True, MISSING)
    assert (infos["seed"].type, infos["seed"].optional) == (int, True)
    assert (infos["target_frames"].type, infos["target_frames"].many) == (int, True)
    assert (infos["network_dim"].ge, infos["network_dim"].le) == (1, 256)
    assert (infos["network_dim"].section, infos["dit"].section) == ("adapter", "")


def test_a_field_that_no_edge_could_show_is_a_slip_of_the_programmer():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Wrong:
        table: dict[str, int] = option(None, help="?")

    with pytest.raises(TypeError, match=r"Wrong\.table"):
        options_of(Wrong)


def test_values_arrive_as_the_options_own_types():
    run = build(
        Run,
        {
            "dit": "C:\\models\\dit.pt",
            "learning_rate": 1,
            "seed": 7.0,
            "target_frames": [1, 25],
            "network_dim": 8,
        },
        where="run.toml",
    )
    assert run.dit == Path("C:\\models\\dit.pt")
    assert (run.learning_rate, type(run.learning_rate)) == (1.0, float)
    assert (run.seed, type(run.seed)) == (7, int)
    assert run.target_frames == (1, 25)
    assert run.adapter == Adapter(network_dim=8)
    assert run.mixed_precision == "no"


def test_one_value_is_accepted_where_a_list_is_meant():
    assert build(Run, {"dit": "a", "target_frames": 25}, where="t").target_frames == (25,)


def test_text_with_a_meaning_is_parsed_by_its_option():
    assert build(Run, {"dit": "a", "lr_warmup_steps": "10%"}, where="t").lr_warmup_steps == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="lr_warmup_steps = 'soon': expected a percentage"):
        build(Run, {"dit": "a", "lr_warmup_steps": "soon"}, where="t")


def test_an_alias_sets_the_option_and_its_new_name_wins():
    assert build(Run, {"dit": "a", "rank": 16}, where="t").adapter.network_dim == 16
    assert build(Run, {"dit": "a", "rank": 16, "network_dim": 32}, where="t").adapter.network_dim == 32
    assert build(Run, {"dit": "a", "network_dim": 32, "rank": 16}, where="t").adapter.network_dim == 32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1.0}, "run.toml: unknown option 'learning_rat'. Did you mean learning_rate"),
        ({"network_dim": 0}, "run.toml: network_dim = 0; expected a whole number from 1 to 256"),
        ({"network_dim": 2.5}, "network_dim = 2.5; expected a whole number"),
        ({"network_dim": True}, "network_dim = True; expected a whole number"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'; expected a number of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is not a number"),
        ({"learning_rate": None}, "learning_rate has no value"),
        ({"mixed_precision": "fp8"}, "mixed_precision = 'fp8'; choose one of no, bf16"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing = 'yes'; expected true or false"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing = 1; expected true or false"),
        ({"target_frames": [1, 0]}, "target_frames = 0; expected a list, each a whole number of at least 1"),
        ({"dit": 3}, "dit = 3; expected a path"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_was_expected(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build(Run, {"dit": "a", **given}, where="run.toml")
    assert message in str(caught.value)


def test_a_missing_required_option_is_named_with_its_help():
    with pytest.raises(ConfigError, match=r"run.toml: option dit is missing\. The model\."):
        build(Run, {}, where="run.toml")


def test_none_is_a_value_only_where_the_option_may_be_unset():
    seed = next(info for info in options_of(Run) if info.name == "seed")
    assert coerce(seed, None, where="t") is None


def test_values_of_a_config_are_flat_and_rebuild_it():
    run = build(Run, {"dit": "a", "network_dim": 8, "seed": 3}, where="t")
    values = values_of(run)
    assert values["network_dim"] == 8
    assert "source" not in values
    assert build(Run, values, where="t") == run
