"""From the words of a command line to values by option name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from musubi_core.cli.flags import gather
from musubi_core.cli.later import LaterOption
from musubi_core.cli.parser import parse
from musubi_core.config import ConfigError, option


def _share(text: str) -> float:
    return float(text.rstrip("%")) / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    dit: Path = option(help="The model, 100 % of it.")
    network_dim: int = option(4, ge=1, help="Rank.", aliases=("rank",))
    learning_rate: float = option(1e-4, help="Step size.")
    logit_mean: float = option(0.0, help="Mean.")
    lr_warmup_steps: float = option(0.0, help="Steps or share.", parse=_share)
    gradient_checkpointing: bool = option(False, help="Save memory.")
    target_frames: tuple[int, ...] = option((1,), help="Lengths.")
    network_args: tuple[str, ...] = option((), help="key=value.")
    mixed_precision: str | None = option(None, choices=("no", "bf16"), help="Precision.")
    files: tuple[Path, ...] = option((), help="Files.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OneModel:
    guidance_scale: float = option(1.0, help="Guidance.")
    tiling: bool = option(False, help="Tiles.")
    encoder: Path | None = option(None, help="LLaMA.")
    encoder_dtype: str = option("float16", help="Precision.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    tiling: bool = option(False, help="Tiles.")
    encoder: Path | None = option(None, help="T5.")
    encoder_dtype: str = option("bfloat16", help="Precision.")


FLAGS = gather((Sample,), {"one": OneModel, "other": OtherModel})
LATER = (LaterOption(name="fp8_base", values=None), LaterOption(name="blocks_to_swap", values=""))


def read(*words: str, **more: Any) -> dict[str, Any]:
    return parse("train", words, FLAGS, later=LATER, **more)


def test_only_what_is_given_is_there():
    assert read() == {}
    assert read("--network_dim", "16") == {"network_dim": 16}


def test_words_become_what_a_toml_file_would_hold():
    given = read(
        *(
            "--dit",
            "a.pt",
            "--learning_rate",
            "1e-4",
            "--gradient_checkpointing",
            "--mixed_precision",
            "bf16",
        ),
        *("--target_frames", "1", "25", "--lr_warmup_steps", "10%", "--logit_mean", "-6.0"),
    )
    assert given == {
        "dit": "a.pt",
        "learning_rate": 1e-4,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "target_frames": [1, 25],
        "lr_warmup_steps": "10%",
        "logit_mean": -6.0,
    }


def test_a_text_that_is_no_number_is_left_for_the_option_to_refuse():
    assert read("--network_dim", "many") == {"network_dim": "many"}


def test_dashes_underscores_and_equals_signs_are_accepted():
    expected = {"network_dim": 8, "gradient_checkpointing": True}
    assert read("--network-dim", "8", "--gradient-checkpointing") == expected
    assert read("--network-dim=8", "--gradient_checkpointing") == expected


def test_dashes_in_values_are_not_touched():
    assert read("--dit=my-model.pt")["dit"] == "my-model.pt"
    assert read("--network_args", "a-b=c", "name=--x y")["network_args"] == ["a-b=c", "name=--x y"]


def test_every_switch_can_be_switched_off():
    assert read("--no_gradient_checkpointing") == {"gradient_checkpointing": False}
    assert read("--gradient_checkpointing", "--no-gradient-checkpointing") == {
        "gradient_checkpointing": False
    }


def test_an_older_name_sets_the_option():
    assert read("--rank", "8") == {"network_dim": 8}


def test_the_last_of_two_equal_flags_wins():
    assert read("--network_dim", "8", "--network_dim", "16") == {"network_dim": 16}


@pytest.mark.parametrize(
    "path",
    [
        "C:\\sets\\my cats\\new.toml",
        "D:/模型/dit.safetensors",
        'it\'s "quoted".pt',
        "\\\\server\\share\\a b.pt",
        "~/Ünïcode/ファイル.pt",
    ],
)
def test_paths_of_every_kind_arrive_unchanged(path: str):
    assert read("--dit", path) == {"dit": path}


def test_an_option_of_a_later_version_is_read():
    assert read("--fp8_base", "--blocks-to-swap", "20") == {"fp8_base": True, "blocks_to_swap": "20"}


def test_a_list_without_values_is_an_empty_list():
    assert read("--network_args") == {"network_args": []}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--netwrok_dim", "4"], "musubi train: unknown option '--netwrok_dim'. Did you mean --network_dim"),
        (["--fp8_bas"], "Did you mean --fp8_base"),
        (["--network", "4"], "unknown option '--network'"),  # no abbreviations
        (["--network_dim"], "argument --network_dim: expected one argument"),
        (["stray"], "'stray' belongs to no option"),
        (["--gradient_checkpointing", "true"], "'true' belongs to no option"),
    ],
)
def test_what_is_not_understood_is_named(words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        read(*words)
    assert message in str(caught.value)


def test_an_option_may_need_no_flag():
    assert read("a b.pt", "--network_dim", "2", positional="dit") == {"dit": "a b.pt", "network_dim": 2}


def test_help_shows_limits_defaults_and_who_knows_an_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        read("--help", description="Train a LoRA.")
    assert left.value.code == 0
    text = capsys.readouterr().out
    for expected in ("Train a LoRA.", "only for one:", "only for one, other:", "--tiling", "100 % of it"):
        assert expected in text
    assert "no|bf16" in text
    assert "(default: 4)" in text
    assert "fp8_base" not in text


def test_one_name_with_two_shapes_is_a_slip_of_the_programmer():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Clash:
        tiling: int = option(0, help="?")

    with pytest.raises(TypeError, match="option tiling is declared twice"):
        gather((Sample,), {"one": OneModel, "third": Clash})


def test_a_flag_knows_its_architectures():
    assert FLAGS["network_dim"].architectures == ()
    assert FLAGS["guidance_scale"].architectures == ("one",)
    assert FLAGS["tiling"].architectures == ("one", "other")


def test_each_architecture_has_its_say_where_they_differ():
    assert FLAGS["tiling"].info.help == "Tiles."
    assert FLAGS["encoder"].info.help == "one: LLaMA. other: T5."
    dtype = FLAGS["encoder_dtype"].info
    assert dtype.help == "one: Precision. Default: float16. other: Precision. Default: bfloat16."
    assert dtype.default is None, "one default for both would be wrong for one of them"


def test_patterns_of_files_are_filled_in_where_the_shell_leaves_them(tmp_path: Path):
    folder = tmp_path / "set [1] ねこ"
    folder.mkdir()
    for name in ("cat-2", "cat-1", "dog-1"):
        (folder / name).touch()
    found = read("--files", f"{folder}/cat-*", f"{folder}/dog-?", f"{folder}/nowhere-*", "plain")
    assert [Path(path).name for path in found["files"]] == ["cat-1", "cat-2", "dog-1", "nowhere-*", "plain"]
    assert read("--network_args", "a=*") == {"network_args": ["a=*"]}
