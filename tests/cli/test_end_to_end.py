"""The command line from pictures to a LoRA, with tiny weights and names that break careless programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from musubi_core.cli.main import main
from musubi_core.cli.work import check_lora
from musubi_core.errors import BadFileError
from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.models.registry import architecture
from musubi_core.models.spec import TinyFiles

STEPS = 6
MODEL = ("--architecture", "hunyuan_video")  # neither pictures nor encoders tell


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return architecture("hunyuan_video").write_tiny(tmp_path_factory.mktemp("models 模型"), 0)


def a_dataset(folder: Path) -> Path:
    """Three pictures with captions and the file that names them, all in one awkward folder."""
    pictures = folder / "it's ねこ & co"
    pictures.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f'a "quoted" cat, 猫 {number}', encoding="utf-8")
    file = folder / "data set.toml"
    file.write_text(
        f'[general]\nresolution = 64\n[[datasets]]\nimage_directory = """{pictures.as_posix()}"""\n'
        f'cache_directory = """{(folder / "cache dir").as_posix()}"""\n',
        encoding="utf-8",
    )
    return file


def cache(dataset: Path, tiny: TinyFiles) -> tuple[int, int]:
    """The exit codes of both caching jobs."""
    text = [
        word for name in ("text_encoder1", "text_encoder2") for word in (f"--{name}", str(tiny.options[name]))
    ]
    common = ["--dataset-config", str(dataset), *MODEL, "--device=cpu"]
    return main(["cache-latents", "--vae", str(tiny.vae), *common]), main(["cache-text", *text, *common])


def a_run(dataset: Path, tiny: TinyFiles, *, steps: int = STEPS) -> Path:
    """A config file with everything that the run needs."""
    file = dataset.parent / "my run.toml"
    output = dataset.parent / "out put"
    file.write_text(
        f'dit = """{tiny.dit.as_posix()}"""\ndataset_config = """{dataset.as_posix()}"""\n'
        f'[training]\nmax_train_steps = {steps}\nseed = 1\nmixed_precision = "no"\nnetwork_dim = 2\n'
        f'[output]\noutput_dir = """{output.as_posix()}"""\noutput_name = "ねこ lora"\n',
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, tiny: TinyFiles) -> Path:
    dataset = a_dataset(tmp_path_factory.mktemp("data"))
    assert cache(dataset, tiny) == (0, 0)
    return dataset


def test_four_commands_make_a_lora(cached: Path, tiny: TinyFiles, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(cached), *MODEL]) == 0
    assert main(["train", "--config_file", str(a_run(cached, tiny))]) == 0
    lora = cached.parent / "out put" / "ねこ lora.safetensors"
    assert any(name.endswith(".lora_down.weight") for name in read_tensors(lora))
    assert f"LoRA: {lora}" in capsys.readouterr().err
    assert main(["inspect", str(lora)]) == 0
    assert "ss_network_dim = 2" in capsys.readouterr().out


def test_a_damaged_picture_is_named_and_the_others_are_cached(
    tmp_path: Path, tiny: TinyFiles, capsys: pytest.CaptureFixture[str]
):
    dataset = a_dataset(tmp_path)
    picture = tmp_path / "it's ねこ & co" / "1.png"
    picture.write_bytes(picture.read_bytes()[:-2000])
    assert cache(dataset, tiny)[0] == 2
    error = capsys.readouterr().err
    assert "1.png" in error
    assert "Traceback" not in error
    assert len(list((tmp_path / "cache dir").glob("*_hv.safetensors"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dit", "nowhere.pt"], "nowhere.pt"),
        (["--network_dim", "0"], "network_dim = 0; expected a whole number of at least 1"),
        (["--network_dimm", "4"], "Did you mean --network_dim"),
        (["--architecture", "hunyuan"], "unknown architecture 'hunyuan'. Did you mean hunyuan_video"),
        (["--optimizer_args", "betas"], "betas"),
        (["--network_args", "rank_dropot=0.1"], "rank_dropout"),
        (["--async_upload"], "--async_upload is known from musubi-tuner but not available"),
    ],
)
def test_a_wrong_option_ends_with_2_and_names_itself(
    words: list[str], message: str, cached: Path, tiny: TinyFiles, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--config_file", str(a_run(cached, tiny)), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_vae_in_place_of_the_network_is_recognised(
    cached: Path, tiny: TinyFiles, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--config_file", str(a_run(cached, tiny)), "--dit", str(tiny.vae)]) == 2
    assert "VAE" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_saves_ends_with_130_and_the_run_goes_on(tmp_path: Path, tiny: TinyFiles):
    dataset = a_dataset(tmp_path)
    assert cache(dataset, tiny) == (0, 0)
    settings = a_run(dataset, tiny, steps=100_000)
    command = [sys.executable, "-m", "musubi_core", "train", "--config_file", str(settings)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        metrics = tmp_path / "out put" / "ねこ lora.metrics.jsonl"
        wait_until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, error.decode(errors="replace")
    assert b"Traceback" not in error
    done = metrics.read_bytes().count(b"\n")
    more = ["--resume", "auto", "--max_train_steps", str(done + 2)]
    assert main(["train", "--config_file", str(settings), *more]) == 0
    assert metrics.read_bytes().count(b"\n") == done + 2


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode(errors="replace")
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_lora_that_is_none_is_not_a_success(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"lora_unet_a.lora_down.weight": torch.full((2, 4), torch.nan)})
    with pytest.raises(BadFileError, match="not a usable LoRA"):
        check_lora(file)
