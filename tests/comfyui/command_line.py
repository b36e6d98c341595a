"""The same training from the command line, in the same Python as a server's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from server import PACK, Client
from stage import STEPS

from musubi_core.files.tensors import read_tensors

# Which model list a file was put into, by its option; what is not named here is a text encoder.
LISTS = {"dit": "diffusion_models", "vae": "vae", "clip": "clip_vision", "image_encoder": "clip_vision"}
JOBS = {"dit": "train", "vae": "cache-latents", "clip": "cache-latents", "image_encoder": "cache-latents"}


def with_command_line(
    comfy: Client, name: str, files: Mapping[str, str], folder: Path, controls: Path | None = None
) -> None:
    """Cache and train input/cats as `stage.train_graph` does, into `folder`: caches/, cli.safetensors.

    The same Python, because sums may be rounded differently in another version of torch.
    """
    dataset = folder / "cats.toml"
    lines = ["[[datasets]]", "resolution = [64, 64]", f"image_directory = '{comfy.base}/input/cats'"]
    lines += [f"cache_directory = '{folder}/caches'"]
    lines += [] if controls is None else [f"control_directory = '{controls}'"]
    dataset.write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = ["--dataset_config", str(dataset), "--architecture", name]
    words = {job: [job, *common] for job in ("cache-latents", "cache-text", "train")}
    for option, file in files.items():
        path = comfy.base / "models" / LISTS.get(option, "text_encoders") / file
        path = path.parent if (path.parent / "config.json").is_file() else path
        words[JOBS.get(option, "cache-text")] += [f"--{option}", str(path)]
    for job in ("cache-latents", "cache-text"):
        words[job] += ["--device", "cpu"]
    words["train"] += ["--network_dim", "2", "--seed", "1", "--max_train_steps", str(STEPS)]
    words["train"] += ["--output_dir", str(folder), "--output_name", "cli"]
    program = "from musubi_core.cli.main import main\n"
    program += "".join(f"print(main({each!r}))\n" for each in words.values())
    path = os.pathsep.join([str(PACK), str(comfy.libraries)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [str(comfy.python), "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["0", "0", "0"], done.stderr[-3000:]


def assert_same_lora(one: Path, other: Path) -> None:
    """Every tensor equal to the last bit."""
    ours, theirs = read_tensors(one), read_tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
