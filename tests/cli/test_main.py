"""The command line as a whole: words in, exit code and messages out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from musubi_core.cli import main as cli
from musubi_core.cli.jobs import JOBS, Job
from musubi_core.config import option
from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Note, ShouldStop


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoConfig:
    text: str = option("hello", help="What is said.")
    loud: bool = option(False, help="Say it twice.")
    path: Path | None = option(None, help="A path.")


seen: list[EchoConfig] = []


def echo(config: EchoConfig, listener: Listener, should_stop: ShouldStop) -> None:
    seen.append(config)
    listener(Note(text=config.text))
    if config.text == "bad file":
        raise BadFileError("a.pt is broken.")
    if config.text == "bug":
        raise RuntimeError("a bug")
    if config.text == "signal":
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
    if config.text == "two signals":
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def echo_job(monkeypatch: pytest.MonkeyPatch):
    job = Job(name="echo", help="Echo.", config=f"{__name__}:EchoConfig", run=f"{__name__}:echo")
    monkeypatch.setitem(JOBS, "echo", job)
    seen.clear()


def test_a_job_that_succeeds_ends_with_0(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["echo", "--text", "猫 'quoted' C:\\x"]) == 0
    assert seen == [EchoConfig(text="猫 'quoted' C:\\x")]
    assert "猫 'quoted' C:\\x" in capsys.readouterr().err


def test_what_the_user_can_mend_ends_with_2_and_one_message(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["echo", "--text", "bad file"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("error: a.pt is broken.\n")
    assert "Traceback" not in error


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["echo", "--text", "bug"])


def test_ctrl_c_lets_the_job_save_and_ends_with_130():
    assert cli.main(["echo", "--text", "signal"]) == 130


def test_a_second_ctrl_c_does_not_wait():
    assert cli.main(["echo", "--text", "two signals"]) == 130


def test_signals_mean_again_what_they_meant_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    cli.main(["echo", "--text", "signal"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_command_line_wins_over_the_file_also_for_switches(tmp_path: Path):
    file = tmp_path / "my run.toml"
    file.write_text("[any]\ntext = 'from the file'\nloud = true\npath = 'D:\\sets'\n", encoding="utf-8")
    assert cli.main(["echo", "--config_file", str(tmp_path / "my run"), "--no_loud"]) == 0
    assert seen == [EchoConfig(text="from the file", loud=False, path=Path("D:\\sets"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("txt = 'a'", "unknown option 'txt'. Did you mean text"),
        ("text = 3", "text = 3; expected a text"),
        ("config_file = 'a'", "unknown option 'config_file'"),
        ("text = 'a'\n[x]\ntext = 'b'", "text is set twice"),
    ],
)
def test_a_wrong_config_file_ends_with_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    assert cli.main(["echo", "--config_file", str(tmp_path / "run.toml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "run.toml" in error
    assert not seen


def test_an_option_of_a_later_version_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.main(["train", "--save_state_to_huggingface"]) == 2
    assert (
        "--save_state_to_huggingface is known from musubi-tuner but not available in this version"
        in capsys.readouterr().err
    )
    (tmp_path / "run.toml").write_text("num_layers = 20", encoding="utf-8")
    assert cli.main(["train", "--config_file", str(tmp_path / "run.toml")]) == 2
    assert "run.toml: --num_layers is known" in capsys.readouterr().err


def test_a_switch_of_a_later_version_may_be_off_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.toml").write_text("save_state_to_huggingface = false", encoding="utf-8")
    assert cli.main(["train", "--config_file", str(tmp_path / "run.toml")]) == 2
    assert "save_state_to_huggingface" not in capsys.readouterr().err  # only what is missing is named


def test_an_unknown_job_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trian"]) == 2
    assert "unknown job 'trian'. Did you mean train" in capsys.readouterr().err


def test_help_lists_every_job(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in JOBS:
        assert name in text


@pytest.mark.parametrize("name", ["cache-latents", "cache-text", "train", "generate", "inspect", "demo"])
def test_every_job_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in JOBS[name].flags().values():
        assert f"--{flag.info.name}" in text or flag.info.name == JOBS[name].positional


def test_without_words_the_help_is_shown_and_nothing_is_promised(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 2
    assert "usage: musubi" in capsys.readouterr().out


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["echo", "--text", "bad file"]) == 2
    assert capsys.readouterr().err == ""


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, env={**os.environ, **environment}, check=False
    )


def test_help_imports_nothing_heavy():
    heavy = ["torch", "numpy", "diffusers", "transformers", "accelerate", "av", "PIL", "tqdm"]
    code = (
        "import sys; from musubi_core.cli.main import main; "
        f"code = main(['--help']); sys.exit(code or any([name for name in {heavy} if name in sys.modules]))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("job", ["train", "cache-latents", "cache-text"])
def test_options_are_known_without_torch(job: str):
    code = (
        "import sys; from musubi_core.cli.main import main; "
        f"code = main(['{job}', '--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr.decode()


def fastest(*words: str) -> float:
    """Seconds of the quickest of three starts: the machine may be busy, the program is not slower for it."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run(*words).returncode == 0
        times.append(time.perf_counter() - start)
    return min(times)


def test_the_core_is_imported_in_a_third_of_a_second_and_help_is_there_within_one():
    bare = fastest("-c", "pass")
    assert fastest("-c", "import musubi_core") - bare < 0.3
    assert fastest("-m", "musubi_core", "--help") < 1.0


def test_the_module_form_is_the_same_program():
    done = run("-m", "musubi_core", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"musubi ")


def test_a_console_without_a_letter_shows_its_code_instead_of_failing(tmp_path: Path):
    file = tmp_path / "猫.safetensors"
    file.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    done = run("-m", "musubi_core", "inspect", str(file), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"\\u732b.safetensors" in done.stdout


def test_the_words_of_a_later_job_are_checked(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["ema-merge", "a.safetensors", "--betta", "0.9"]) == 2
    assert "unknown option '--betta'. Did you mean --beta" in capsys.readouterr().err
