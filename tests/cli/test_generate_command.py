"""`musubi generate` as people type it: exit codes, messages, and files that are there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from musubi_core.cli import main as cli
from musubi_core.cli.work import check_drawn
from musubi_core.errors import BadFileError
from musubi_core.generation.outputs import write_latent
from musubi_core.generation.session import Session
from musubi_core.models.registry import SPECS, architecture

SMALL = ["--prompt", "a cat", "--video_size", "48", "32", "--infer_steps", "2", "--seed", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words that name the files of a tiny model, by architecture."""
    found = {}
    for name in SPECS:
        files = architecture(name).write_tiny(tmp_path_factory.mktemp(name), 1)
        words = {"dit": files.dit, "vae": files.vae, **files.options}
        found[name] = [word for option, value in words.items() for word in (f"--{option}", str(value))]
    return found


def run(words: list[str], folder: Path) -> int:
    return cli.main(["generate", *words, "--save_path", str(folder)])


@pytest.mark.parametrize("name", SPECS)
def test_a_prompt_becomes_a_file(models: dict[str, list[str]], name: str, tmp_path: Path, capsys: Any):
    frames = ["--video_length", "5"] if architecture(name).latent.temporal else []
    assert run([*models[name], *SMALL, *frames], tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.suffix == (".mp4" if frames else ".png")
    assert str(path) in capsys.readouterr().err


def test_the_command_line_of_the_readme_of_old_draws(models: dict[str, list[str]], tmp_path: Path):
    """Every option of musubi-tuner's first example, on tiny files."""
    words = [*models["hunyuan_video"], "--fp8", "--video_size", "32", "48", "--video_length", "5"]
    words += ["--infer_steps", "2", "--prompt", "A cat walks on the grass, realistic style."]
    words += ["--output_type", "both", "--attn_mode", "sdpa", "--split_attn", "--vae_chunk_size", "32"]
    words += ["--vae_spatial_tile_sample_min_size", "128", "--seed", "1234"]
    assert run(words, tmp_path) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mp4", ".safetensors"]


def test_latents_are_decoded_without_naming_a_model(models: dict[str, list[str]], tmp_path: Path):
    assert run([*models["wan"], *SMALL, "--video_length", "1", "--output_type", "latent"], tmp_path) == 0
    (latent,) = tmp_path.iterdir()
    vae = models["wan"][models["wan"].index("--vae") + 1]
    assert run(["--latent_path", str(latent), "--vae", vae], tmp_path / "out") == 0
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".png"]


def test_options_may_stand_in_a_config_file(models: dict[str, list[str]], tmp_path: Path):
    config = tmp_path / "run.toml"
    config.write_text(
        "prompt = 'a cat'\nvideo_size = [48, 32]\ninfer_steps = 2\n[more]\nvideo_length = 1\n",
        encoding="utf-8",
    )
    assert run([*models["wan"], "--config_file", str(config)], tmp_path / "out") == 0


def test_prompts_are_asked_for(models: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    typed: Iterator[str] = iter(["a cat --w 32 --h 48 --f 1 --s 1", ""])
    monkeypatch.setattr("builtins.input", lambda text: next(typed))
    assert run([*models["wan"], "--interactive"], tmp_path) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No prompt is given"),
        (["--prompt", "a", "--video_lenght", "5"], "Did you mean --video_length"),
        (["--prompt", "a", "--video_size", "48"], "Give height and width"),
        (["--prompt", "a", "--output_type", "gif"], "choose one of video, images"),
        (["--prompt", "a", "--lora_weight", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--prompt", "a", "--reference_placement", "index"], "is an option of flux_kontext"),
        (["--prompt", "a", "--expert_loras", "pair"], "unknown option '--expert_loras'"),
        (["--prompt", "a", "--slg_mode", "original"], "--slg_mode is known from musubi-tuner"),
        (["--from_file", "nowhere.txt"], "nowhere.txt"),
        (["--prompt", "a", "--seed", "-1"], "seed = -1"),
        (["--prompt", "a", "--control_image_path", "nowhere.png"], "control picture nowhere.png"),
    ],
)
def test_a_slip_ends_with_2_and_one_message(
    models: dict[str, list[str]], words: list[str], message: str, tmp_path: Path, capsys: Any
):
    assert run([*models["wan"], *words], tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("*"))


def test_ctrl_c_ends_with_130_and_leaves_no_half_file(
    models: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    draw = Session.draw

    def interrupted(self: Session, *given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return draw(self, *given)

    monkeypatch.setattr(Session, "draw", interrupted)
    assert run([*models["wan"], *SMALL, "--video_length", "1"], tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".png", ".mp4", "_latent.safetensors"])
def test_a_file_that_was_cut_off_is_not_what_was_promised(
    models: dict[str, list[str]], ending: str, tmp_path: Path
):
    frames = "1" if ending == ".png" else "5"
    assert run([*models["wan"], *SMALL, "--video_length", frames, "--output_type", "both"], tmp_path) == 0
    (path,) = (one for one in tmp_path.iterdir() if one.name.endswith(ending))
    check_drawn(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadFileError):
        check_drawn(path)


def test_a_latent_of_an_unknown_model_is_refused(models: dict[str, list[str]], tmp_path: Path, capsys: Any):
    latent = write_latent(tmp_path, "x", torch.zeros(16, 1, 4, 4), {"architecture": "waan"})
    vae = models["wan"][models["wan"].index("--vae") + 1]
    assert run(["--latent_path", str(latent), "--vae", vae], tmp_path / "out") == 2
    assert "unknown architecture 'waan'. Did you mean wan" in capsys.readouterr().err
