"""How much longer a step of the training loop takes than forward, backward and optimizer alone.

Both sides train the same LoRA on the same random-weight network, with batches of the same size, in the same
process and in turn: after every chunk of steps of the loop, a chunk of the bare loop runs while the loop
waits. The loop's time holds everything it does: reading caches, noise, noise levels, clipping, metrics.
`bare` is forward, backward and optimizer step on one batch that is already in memory.

    python benchmarks/train_step.py --write
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from musubi_core.config import build
from musubi_core.events import Event, Metrics
from musubi_core.files.tensors import write_tensors
from musubi_core.models.hunyuan_video.config import HunyuanVideoConfig
from musubi_core.models.hunyuan_video.model import HunyuanVideo
from musubi_core.training.config import TrainConfig
from musubi_core.training.inputs import prepare
from musubi_core.training.loading import attach_loras, load_experts
from musubi_core.training.opening import open_run
from musubi_core.training.processes import join_processes
from musubi_core.training.run import make_loop, train

RESULTS = Path(__file__).parent / "results"
TEXT, POOLED, TOKENS = 128, 64, 24
CASES = {  # name: (goal, network)
    "tiny": (
        1.05,
        HunyuanVideoConfig(
            hidden=128, heads=1, double_blocks=2, single_blocks=2, mlp_width=512, text_width=TEXT,
            pooled_width=POOLED,
        ),
    ),
    "hidden 512, 6 blocks": (
        1.02,
        HunyuanVideoConfig(
            hidden=512, heads=4, double_blocks=2, single_blocks=4, mlp_width=2048, text_width=TEXT,
            pooled_width=POOLED,
        ),
    ),
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(options.threads)
    results = {}
    for name, (goal, network) in CASES.items():
        folder = Path(tempfile.mkdtemp(prefix="musubi-bench-"))
        try:
            results[name] = {"goal": goal, **measure(folder, network, options)}
        finally:
            shutil.rmtree(folder)
    report = {**_circumstances(), "options": vars(options), "results": results}
    sys.stdout.write(_table(results) + "\n" + json.dumps(report, indent=2) + "\n")
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"train_step-{datetime.now(timezone.utc):%Y-%m-%d}.json"
        (RESULTS / name).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(one["ratio"] <= one["goal"] for one in results.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The training loop against bare forward and backward.")
    parser.add_argument("--chunks", type=int, default=40, help="of each side; medians over them count")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a chunk")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--latent", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=1, help="threads that read caches")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser


def measure(folder: Path, network: HunyuanVideoConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of both sides, chunk by chunk, and the median of their ratios."""
    config = _workplace(folder, network, options)
    bare = _bare_step(config)
    for _ in range(3):
        bare()
    start = time.perf_counter()
    for _ in range(3):
        bare()
    steps = max(5, round(options.seconds / (time.perf_counter() - start) * 3))
    turns = Turns(bare, steps=steps, chunks=options.chunks)
    train(config, turns, turns.done)
    return turns.result()


class Turns:
    """Listens to the loop; after each chunk of its steps it runs as many bare steps."""

    def __init__(self, bare: Callable[[], None], *, steps: int, chunks: int) -> None:
        self.bare, self.steps, self.chunks = bare, steps, chunks
        self.loop_times: list[float] = []
        self.bare_times: list[float] = []
        self.started = 0.0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Metrics) or event.step % self.steps:
            return
        now = time.perf_counter()
        if event.step > self.steps:  # the first chunk warms up
            self.loop_times.append((now - self.started) / self.steps)
        start = time.perf_counter()
        for _ in range(self.steps):
            self.bare()
        if event.step > self.steps:
            self.bare_times.append((time.perf_counter() - start) / self.steps)
        self.started = time.perf_counter()

    def done(self) -> bool:
        return len(self.loop_times) >= self.chunks

    def result(self) -> dict[str, Any]:
        """Each chunk of the loop is compared with the mean of the bare chunks before and after it."""
        around = zip(self.loop_times[1:], self.bare_times, self.bare_times[1:], strict=False)
        ratios = sorted(loop / ((before + after) / 2) for loop, before, after in around)
        return {
            "steps_per_chunk": self.steps,
            "loop_ms": 1e3 * statistics.median(self.loop_times),
            "bare_ms": 1e3 * statistics.median(self.bare_times),
            "ratio": statistics.median(ratios),
            "ratio_of_fastest": min(self.loop_times) / min(self.bare_times),
            "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        }


def _bare_step(config: TrainConfig) -> Callable[[], None]:
    """One step without a loop around it, on a batch, network and optimizer of its own."""
    with join_processes("no") as here:
        opened = open_run(config, None, here, lambda event: None)
        experts = load_experts(opened)
        loras = attach_loras(opened, experts)
        loop = make_loop(opened, experts, loras, [], lambda: False)
    batch = prepare(loop.recipe, opened.plans.at(0).mine[0])
    loop.stepper.gradients.detach()
    optimizer = torch.optim.AdamW(loras.parts()[0], lr=config.optimizer.learning_rate)
    spec, arch_options, model = opened.spec, opened.config.arch_options, experts.models[0]

    def step() -> None:
        optimizer.zero_grad()
        prediction = spec.predict(model, batch.noisy, batch.t, batch.conditioning, arch_options)
        torch.nn.functional.mse_loss(prediction, batch.target).backward()
        optimizer.step()

    return step


def _workplace(folder: Path, network: HunyuanVideoConfig, options: argparse.Namespace) -> TrainConfig:
    """Random weights and caches in the real formats, and a run on them that only a stop ends."""
    torch.manual_seed(0)
    model = HunyuanVideo(network)
    weights = {name: 0.02 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    write_tensors(folder / "dit.safetensors", weights)
    (folder / "media").mkdir()
    side = options.latent
    facts = {"architecture": "hunyuan_video", "format_version": "1.0.1", "caption1": "noise"}
    for number in range(32):
        name = folder / "cache" / f"{number:02d}"
        latents = torch.randn(16, 1, side, side)
        write_tensors(
            name.with_name(f"{name.name}_{8 * side:04d}x{8 * side:04d}_hv.safetensors"),
            {f"latents_1x{side}x{side}_float32": latents},
            facts,
        )
        write_tensors(
            name.with_name(f"{name.name}_hv_te.safetensors"),
            {
                "llm_float32": torch.randn(TOKENS, TEXT),
                "llm_mask": torch.ones(TOKENS, dtype=torch.int64),
                "clipL_float32": torch.randn(POOLED),
            },
            facts,
        )
    dataset = folder / "dataset.toml"
    dataset.write_text(
        f"[general]\nresolution = {8 * side}\nbatch_size = {options.batch_size}\n[[datasets]]\n"
        f"image_directory = '{(folder / 'media').as_posix()}'\n"
        f"cache_directory = '{(folder / 'cache').as_posix()}'\n",
        encoding="utf-8",
    )
    values = {
        "dit": folder / "dit.safetensors",
        "dataset_config": dataset,
        "output_dir": folder / "out",
        "output_name": "bench",
        "network_dim": 16,
        "max_train_steps": 10**9,
        "seed": 1,
        "mixed_precision": "no",
        "timestep_sampling": "shift",
        "discrete_flow_shift": 7.0,
        "max_data_loader_n_workers": options.workers,
    }
    return build(TrainConfig, values, where="the benchmark")


def _circumstances() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, CPU",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "safetensors", "accelerate")},
        },
    }


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["case                   bare ms   loop ms   ratio   goal"]
    for name, one in results.items():
        lines.append(
            f"{name:20s} {one['bare_ms']:9.2f} {one['loop_ms']:9.2f} {one['ratio']:7.4f} {one['goal']:6.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
