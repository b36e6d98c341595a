"""The command line over the config file, and each value to the class that declares it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from musubi_core.cli.architecture import choose
from musubi_core.cli.flags import gather
from musubi_core.cli.settings import (
    Setting,
    check_architecture,
    config_of,
    from_command_line,
    from_config_file,
    resolve_names,
)
from musubi_core.config import ConfigError, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    dit: Path = option(help="The model.")
    learning_rate: float = option(1e-4, ge=0, help="Step size.")
    network_dim: int = option(4, ge=1, help="Rank.", aliases=("rank",))
    architecture: str | None = option(None, help="Model family.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OneModel:
    guidance_scale: float = option(1.0, help="Guidance.")
    tiling: bool = option(False, help="Tiles.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    tiling: bool = option(False, help="Tiles.")


FLAGS = gather((Sample,), {"one": OneModel, "other": OtherModel})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_of_a_config_file_are_flattened(tmp_path: Path):
    file = write(
        tmp_path / "run.toml", "dit = 'D:\\m\\x.pt'\n[optimizer]\nlearning_rate = 2e-4\n[a.b]\nrank = 2\n"
    )
    values = {name: setting.value for name, setting in from_config_file(file).items()}
    assert values == {"dit": "D:\\m\\x.pt", "learning_rate": 2e-4, "rank": 2}


def test_the_ending_of_a_config_file_may_be_left_out(tmp_path: Path):
    write(tmp_path / "run v1.2.toml", "network_dim = 2\n")
    assert from_config_file(tmp_path / "run v1.2")["network_dim"].value == 2


def test_a_key_in_two_tables_is_an_error_that_names_both(tmp_path: Path):
    file = write(tmp_path / "run.toml", "network_dim = 1\n[network]\nnetwork_dim = 2\n")
    with pytest.raises(ConfigError, match=r"network_dim is set twice, in the top and \[network\]"):
        from_config_file(file)


def test_a_missing_config_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such\.toml does not exist"):
        from_config_file(tmp_path / "no such")


def test_an_unknown_key_names_the_file_and_the_nearest_key():
    with pytest.raises(
        ConfigError, match=r"run\.toml: unknown option 'learning_rat'\. Did you mean learning_rate"
    ):
        resolve_names({"learning_rat": Setting(value=1, where="run.toml")}, FLAGS)


def test_an_older_name_is_resolved_and_may_not_stand_beside_the_new_one():
    old = {"rank": Setting(value=8, where="run.toml")}
    assert set(resolve_names(old, FLAGS)) == {"network_dim"}
    with pytest.raises(ConfigError, match="rank is another name of network_dim"):
        resolve_names({"network_dim": Setting(value=4, where="run.toml"), **old}, FLAGS)


def test_each_class_takes_its_own_options():
    settings = from_command_line({"dit": "a.pt", "network_dim": 8, "guidance_scale": 6})
    assert config_of(Sample, settings) == Sample(dit=Path("a.pt"), network_dim=8)
    assert config_of(OneModel, settings) == OneModel(guidance_scale=6.0)


def test_a_wrong_value_is_reported_where_it_was_written():
    settings = {
        **from_command_line({"dit": "a.pt"}),
        "network_dim": Setting(value=0, where="run.toml"),
    }
    with pytest.raises(
        ConfigError, match=r"^run\.toml: network_dim = 0; expected a whole number of at least 1"
    ):
        config_of(Sample, settings)
    with pytest.raises(ConfigError, match=r"^the command line: network_dim = 'x'; expected a whole number"):
        config_of(Sample, from_command_line({"dit": "a.pt", "network_dim": "x"}))


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match="option dit is missing"):
        config_of(Sample, {})


def chosen(**values: object) -> str:
    return choose(from_command_line(values), FLAGS, ("one", "other"), checkpoint="dit")


def test_the_named_architecture_is_taken():
    assert chosen(architecture="other") == "other"
    with pytest.raises(ConfigError, match=r"unknown architecture 'onee'\. Did you mean one"):
        chosen(architecture="onee")


def test_without_a_name_the_options_may_tell_the_architecture():
    assert chosen(guidance_scale=1) == "one"
    with pytest.raises(ConfigError, match=r"it could be one or other\. Give --architecture"):
        chosen(tiling=True)


def test_an_option_of_another_architecture_is_refused():
    settings = from_command_line({"guidance_scale": 1})
    check_architecture(settings, FLAGS, "one")
    with pytest.raises(ConfigError, match="guidance_scale is an option of one, but this run uses other"):
        check_architecture(settings, FLAGS, "other")
