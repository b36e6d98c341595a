"""How much longer averaging ten LoRA files takes than reading them and writing one.

Both sides in the same process, in turn, on the same files of about --megabytes each:

    plain   every file is read tensor by tensor, and one of them is written again
    merge   `ema_merge` with one beta

`ratio` is the median of the ratios of neighbouring runs, after one of each that does not count.
`ratio_of_fastest` compares the fastest run of each side: on a shared machine the steadier of the two.

`peak_mb` is the largest growth of the process's own memory during the merge, mapped files excluded (Linux).

    python benchmarks/ema.py --write
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from circumstances import circumstances, keep
from peak import Peak

from musubi_core.files.tensors import TensorFile, write_made, write_tensors
from musubi_core.lora_tools.ema import ema_merge
from musubi_core.lora_tools.ema_config import EmaConfig

GOAL, GOAL_MB = 1.5, 200
WIDTH, HEIGHT = 3072, 12288  # of the largest adapted layer


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="musubi-bench-"))
    try:
        names = [f"run-step{index + 1:08d}.safetensors" for index in range(options.files)]
        paths = [_write(folder / name, index + 1, options) for index, name in enumerate(names)]
        rows, peaks = [], []
        for turn in range(options.repeats + 1):
            plain = _timed(lambda: _plain(paths, folder / "plain.safetensors"))
            with Peak() as peak:
                merge = _timed(lambda: _merge(paths, folder / "merged.safetensors"))
            if turn:  # the first one fills the system's cache of files
                rows.append({"plain": plain, "merge": merge})
            peaks.append(peak.grown / 1e6)
        ratio = median(row["merge"] / row["plain"] for row in rows)
        result = {
            **circumstances("ema.py"),
            "goal": GOAL,
            "file_mb": paths[0].stat().st_size / 1e6,
            "runs": rows,
            "ratio": ratio,
            "ratio_of_fastest": min(row["merge"] for row in rows) / min(row["plain"] for row in rows),
            "peak_mb": max(peaks),
            "largest_tensor_mb": max(WIDTH, HEIGHT) * options.rank * 4 / 1e6,
        }
    finally:
        shutil.rmtree(folder)
    fastest = result["ratio_of_fastest"]
    summary = (
        f"ratio {ratio:.2f}, of the fastest {fastest:.2f} (goal {GOAL}), "
        f"peak {max(peaks):.0f} MB (goal {GOAL_MB} + largest tensor)"
    )
    sys.stdout.write(f"{json.dumps(result, indent=2)}\n{summary}\n")
    if options.write:
        keep("ema", result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="keep the result")
    return parser


def _write(path: Path, step: int, options: argparse.Namespace) -> Path:
    draw = torch.Generator().manual_seed(step)
    layers = round(options.megabytes * 1e6 / (4 * options.rank * (WIDTH + HEIGHT)))
    tensors = {}
    for layer in range(max(layers, 1)):
        tensors[f"lora_unet_{layer}.lora_down.weight"] = torch.randn(options.rank, WIDTH, generator=draw)
        tensors[f"lora_unet_{layer}.lora_up.weight"] = torch.randn(HEIGHT, options.rank, generator=draw)
        tensors[f"lora_unet_{layer}.alpha"] = torch.tensor(1.0)
    write_tensors(path, tensors, {"ss_steps": str(step)}, sshs_hashes=True)
    return path


def _plain(paths: Sequence[Path], output: Path) -> None:
    for path in paths[:-1]:
        with TensorFile(path) as file:
            for name in file.names:
                file.read(name)
    with TensorFile(paths[-1]) as file:
        write_made(output, file.header.tensors, file.read, file.metadata, sshs_hashes=True)


def _merge(paths: Sequence[Path], output: Path) -> None:
    ema_merge(EmaConfig(path=tuple(paths), output_file=output, beta=(0.9,)))


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
