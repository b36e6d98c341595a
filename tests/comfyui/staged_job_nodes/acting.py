"""What the staged job does. Imported when it runs: the engine has its name only once our pack is loaded."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from PIL import Image, ImageFilter

from musubi_core.events import FileWritten, Metrics, Note, Preview, Progress, Warned

NASTY = '<img src=x onerror="window.hacked=1"> & <b>bold</b>'
Job = Any  # nodes/running.py's, which has another name in each server


def pack_module(name: str) -> Any:
    """A module of the pack, which ComfyUI loads under a name of its own."""
    return next(module for key, module in sys.modules.items() if key.endswith(f".nodes.{name}"))


def act(node: str, name: str, steps: int, pause: float, sample_every: int, ending: str) -> None:
    """The whole job. ending: "finish", or the message of an error."""
    running = pack_module("running")
    with running.job(node, name, commands=running.COMMANDS) as job:
        cache(job, pause)
        for step in range(1, steps + 1):
            if job.should_stop():
                save(job, step - 1)
                break
            if job.requests.take("save"):
                save(job, step - 1)
            if job.requests.take("sample") or step % sample_every == 0:
                sample(job, step)
            time.sleep(pause)
            tell(job, step, steps)
        if ending != "finish":
            raise RuntimeError(ending)
        job.raise_if_cancelled()
        job.emit(FileWritten(path=Path(f"{name}.safetensors"), what="LoRA"))


def cache(job: Job, pause: float) -> None:
    for number in range(10):
        job.emit(Progress(stage="latents", done=number + 1, total=10, text=f"{number}.png"))
        time.sleep(pause)
    job.emit(Note(text="24 pictures in 3 buckets."))
    job.emit(Warned(text=f"Captions are short. {NASTY}"))


def tell(job: Job, step: int, steps: int) -> None:
    """What a training tells of a step."""
    decay = math.exp(-4 * step / steps)
    noise = math.sin(step * 12.9898) * 43758.5453 % 1
    values = {
        "loss/current": 0.08 + 0.12 * decay + 0.08 * (noise - 0.5),
        "loss/average": 0.08 + 0.12 * decay,
        "lr/unet": 1e-4 * min(1, step / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
        "grad/norm": 0.3 + 0.2 * noise,
        "time/step": 0.9 + 0.1 * noise,
        "memory/peak_gb": 9.3,
    }
    if step % 20 == 0:
        values["loss/validation"] = 0.09 + 0.11 * decay
    job.emit(Metrics(step=step, values=values))
    job.emit(Progress(stage="train", done=step, total=steps, text="loss"))


def save(job: Job, step: int) -> None:
    job.emit(FileWritten(path=Path(f"staged-step{step:08d}.safetensors"), what="LoRA"))
    job.emit(FileWritten(path=Path(f"staged-step{step:08d}-state"), what="run state"))


def sample(job: Job, step: int) -> None:
    """Pictures that get sharper with the steps: those in the input folder, else discs, one of which moves."""
    chosen = sorted(Path(folder_paths.get_input_directory()).glob("*.png"))
    drawn = [(path.stem, sharpening(path, step)) for path in chosen] or [
        ("a red disc", disc(step, 0, 1)),
        (f"a disc {NASTY}", disc(step, 1, 1)),
        ("a disc that moves", disc(step, 2, 8)),
    ]
    for number, (title, frames) in enumerate(drawn):
        details = {"prompt": title, "seed": 42 + number}
        job.emit(Preview(step=step, title=title, frames=frames, fps=8, details=details))


def sharpening(path: Path, step: int) -> np.ndarray:
    """(1, H, W, 3) uint8: a picture out of the fog."""
    picture = Image.open(path).convert("RGB")
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2000 / (step + 60))))[None]


def disc(step: int, hue: int, frames: int) -> np.ndarray:
    """(F, 192, 256, 3) uint8."""
    y, x = np.mgrid[0:192, 0:256]
    pictures = []
    for frame in range(frames):
        distance = np.hypot(x - 128 - 8 * frame, y - 96)
        shape = 1 / (1 + np.exp((distance - 60) * min(1.0, step / 150)))
        picture = np.full((192, 256, 3), (40, 44, 60), np.float64)
        picture += shape[..., None] * np.roll([190, 40, 20], hue)
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return np.stack(pictures)
