"""How much longer latent caching takes than the VAE encode that it cannot avoid.

Both sides encode the same pixels of the same real photographs and clips, with the same VAE, in the same
process, in turn:

    bare    every group is decoded beforehand; only `LatentCodec.encode` is timed
    job     `cache_latents` from the dataset file to the finished cache folder, opening the VAE included

The VAE is diffusers' HunyuanVideo class, narrower than the real one and with random weights. The fastest job
over the fastest bare run counts, because other programs on the machine only ever add time. `cpu_ratio`
compares processor time in the same way.

    python benchmarks/cache_latents.py --write
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from circumstances import circumstances, keep
from PIL import Image

from musubi_core.data.dataset import read_datasets
from musubi_core.data.pixels import LoadedSample, load_item_samples
from musubi_core.data.scan import scan
from musubi_core.demo.media import PHOTOGRAPHS, photograph, write_clip
from musubi_core.device.precision import pick_device
from musubi_core.files.tensors import write_tensors
from musubi_core.models.registry import architecture
from musubi_core.models.spec import EncoderRequest, LatentCodec, Pixels
from musubi_core.training.cache_config import CacheLatentsConfig
from musubi_core.training.cache_jobs import cache_latents

Result = TypeVar("Result")

GOAL = 1.1
PICTURE_SIDE, CLIP_SIDE, CLIP_FRAMES = 1200, 480, 50  # of the files, before they are resized to the bucket


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp(prefix="musubi-bench-"))
    try:
        dataset = _write_dataset(folder, options)
        vae = folder / "vae.safetensors"
        _write_vae(vae, tuple(options.widths))
        result = _measure(dataset, vae, options)
    finally:
        shutil.rmtree(folder)
    where = circumstances("cache_latents.py", ("diffusers", "numpy", "pillow", "av"))
    report = {**where, "options": vars(options), "goal": GOAL, **result}
    sys.stdout.write(_table(result) + "\n" + json.dumps(report, indent=2) + "\n")
    if options.write:
        keep("cache_latents", report)
    return 0 if result["ratio"] <= GOAL else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Latent caching against the bare VAE encode.")
    parser.add_argument("--pictures", type=int, default=16, help="half JPEG, half PNG")
    parser.add_argument("--clips", type=int, default=2, help="MP4, 17 frames of each are encoded")
    parser.add_argument("--resolution", type=int, default=256, help="side of the area that is encoded")
    parser.add_argument("--widths", type=int, nargs=4, default=(32, 64, 128, 128), help="levels of the VAE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--workers", type=int, default=None, help="--num_workers of the job")
    parser.add_argument("--device", default=None)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser


def _write_dataset(folder: Path, options: argparse.Namespace) -> Path:
    pictures, clips = folder / "pictures", folder / "clips"
    pictures.mkdir()
    clips.mkdir()
    names = list(PHOTOGRAPHS)
    for number in range(options.pictures):
        photo = _resized(photograph(names[number % len(names)]), PICTURE_SIDE + 8 * number)
        Image.fromarray(photo).save(pictures / f"{number}.{'png' if number % 2 else 'jpg'}", quality=92)
        (pictures / f"{number}.txt").write_text("a photograph", encoding="utf-8")
    for number in range(options.clips):
        still = _resized(photograph(names[number % len(names)]), CLIP_SIDE + CLIP_FRAMES)
        height, width = (side - CLIP_FRAMES - side % 2 for side in still.shape[:2])
        frames = np.stack([still[at : at + height, at : at + width] for at in range(CLIP_FRAMES)])
        write_clip(clips / f"{number}.mp4", frames)
        (clips / f"{number}.txt").write_text("a clip", encoding="utf-8")
    side = options.resolution
    lines = [f"[general]\nresolution = [{side}, {side}]\nenable_bucket = true"]
    if options.pictures:
        lines.append(f"[[datasets]]\nimage_directory = {_quoted(pictures)}")
        lines.append(f"cache_directory = {_quoted(folder / 'cache' / 'pictures')}")
    if options.clips:
        lines.append(f"[[datasets]]\nvideo_directory = {_quoted(clips)}\ntarget_frames = [17]")
        lines.append(f"cache_directory = {_quoted(folder / 'cache' / 'clips')}")
    path = folder / "dataset.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _quoted(path: Path) -> str:
    return json.dumps(str(path))


def _resized(photo: np.ndarray, long_side: int) -> np.ndarray:
    """(H, W, 3) uint8, enlarged to the size that cameras deliver."""
    scale = long_side / max(photo.shape[:2])
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    return np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def _write_vae(path: Path, widths: tuple[int, ...]) -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=widths)
    write_tensors(path, vae.state_dict())


def _measure(dataset: Path, vae: Path, options: argparse.Namespace) -> dict[str, Any]:
    spec = architecture("hunyuan_video")
    device = pick_device(options.device)
    request = EncoderRequest(device=device, dtype=torch.float32, options=spec.latent_options(), weights=vae)
    codec = spec.latents(request).open()
    groups = _decoded(dataset)
    config = CacheLatentsConfig(
        dataset_config=dataset,
        architecture=spec.name,
        vae=vae,
        vae_dtype="float32",
        device=str(device),
        num_workers=options.workers,
    )
    _bare(codec, groups[:1])  # kernels are chosen and memory is taken once, outside the measurement
    runs = []
    for _ in range(options.repeats):
        _, bare, bare_cpu = _timed(lambda: _bare(codec, groups))
        shutil.rmtree(dataset.parent / "cache", ignore_errors=True)
        report, job, job_cpu = _timed(lambda: cache_latents(config))
        assert report.written == len(groups) and not report.failed, report
        report, again, _ = _timed(lambda: cache_latents(config))
        assert report.reused == len(groups), report
        runs.append(
            {
                "bare": bare,
                "job": job,
                "bare_cpu": bare_cpu,
                "job_cpu": job_cpu,
                "again": again,
            }
        )
    best = {name: min(run[name] for run in runs) for name in ("bare", "job", "bare_cpu", "job_cpu")}
    return {
        "items": len(groups),
        "runs": runs,
        "ratio": best["job"] / best["bare"],
        "cpu_ratio": best["job_cpu"] / best["bare_cpu"],
    }


def _timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """(what it returned, seconds on the clock, seconds of all processors)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - cpu


def _decoded(dataset: Path) -> list[LoadedSample]:
    shape = architecture("hunyuan_video").latent
    found = []
    for one in (scan(each, shape) for each in read_datasets(dataset)):
        for item in one.items:
            samples = [sample for sample in one.samples if sample.item is item]
            found += load_item_samples(item, samples, one.dataset, shape)
    return found


def _bare(codec: LatentCodec, groups: Sequence[LoadedSample]) -> None:
    for loaded in groups:
        for made in codec.encode(Pixels(frames=torch.from_numpy(loaded.frames[None]), seeds=[0])):
            made["latents"].cpu()


def _table(result: dict[str, Any]) -> str:
    columns = ("bare", "job", "bare_cpu", "job_cpu", "again")
    lines = [f"{result['items']} items, seconds", " ".join(f"{name:>9}" for name in columns)]
    lines += [" ".join(f"{run[name]:>9.2f}" for name in columns) for run in result["runs"]]
    lines.append(f"ratio {result['ratio']:.3f} (cpu {result['cpu_ratio']:.3f}), goal {GOAL}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
