"""What scaled fp8 costs: loading, memory, rounding and multiplying, each beside what it replaces.

load      a bf16 checkpoint of --gigabytes becomes 8-bit layers; beside: the same layers are read and cast
          to fp8 without scales. The fastest of --repeats counts on both sides, which take turns.
memory    the largest growth of the process's own memory during a load, mapped files excluded (Linux), in
          a process of its own; beside: the size of the layers that were made.
quantise  weights in memory become codes and scales; beside: a cast to fp8 without scales.
linear    forward and backward of one layer with an 8-bit weight; beside: the same in bf16. On a card also
          --fp8_fast.

python benchmarks/fp8.py --write
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from circumstances import circumstances, keep
from peak import Peak
from torch import Tensor, nn

from musubi_core.device.fp8_matmul import why_no_fp8_matmul
from musubi_core.device.precision import pick_device
from musubi_core.encoders.loading import fill
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made
from musubi_core.quantization.fp8 import FP8, quantise
from musubi_core.quantization.fp8_linear import Fp8Linear
from musubi_core.quantization.scheme import GRANULARITIES, QuantisationConfig, Scheme

TIME_GOAL, MEMORY_GOAL = 1.4, 1.15
WIDTH = 3072
OUTPUTS = (9216, 3072, 12288)  # qkv, projection and the first of the MLP, of a 13 B video model
BLOCK_BYTES = 2 * WIDTH * sum(OUTPUTS)


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    folder = Path(tempfile.mkdtemp(prefix="musubi-bench-", dir=options.folder))
    try:
        path = folder / "model.safetensors"
        blocks = max(1, round(options.gigabytes * 1e9 / BLOCK_BYTES))
        _write(path, blocks)
        memory = {granularity: _memory(path, blocks, granularity) for granularity in GRANULARITIES}
        load = _load_times(path, blocks, device, options.repeats)
    finally:
        shutil.rmtree(folder)
    result = {
        "checkpoint_gb": blocks * BLOCK_BYTES / 1e9,
        "load": load,
        "memory": memory,
        "quantise": _quantise_times(device, options.repeats),
        "linear": _linear_times(device, options.repeats, options.tokens),
    }
    goals = {"load": TIME_GOAL, "memory": MEMORY_GOAL}
    report = {**circumstances("fp8.py"), "options": _shown(options), "goals": goals, **result}
    sys.stdout.write(_table(result) + "\n" + json.dumps(report, indent=2) + "\n")
    if options.write:
        keep("fp8" if device.type == "cpu" else f"fp8-{device.type}", report)
    return 0 if load["block"]["ratio"] <= TIME_GOAL and memory["block"]["within_goal"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint, in bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024, help="rows that the layer is given")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=None, help="where the checkpoint is put for the time being")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser


def _write(path: Path, blocks: int) -> None:
    """Random weights in bf16, all blocks alike: making the numbers would take longer than measuring."""
    layers = {outputs: torch.randn(outputs, WIDTH).mul_(0.02).bfloat16() for outputs in OUTPUTS}
    infos = {
        f"blocks.{block}.{outputs}.weight": TensorInfo(shape=(outputs, WIDTH), dtype="bfloat16")
        for block in range(blocks)
        for outputs in OUTPUTS
    }
    write_made(path, infos, lambda name: layers[int(name.split(".")[2])])


def _empty(blocks: int) -> nn.Module:
    with torch.device("meta"):
        layers = [
            nn.ModuleDict({str(outputs): nn.Linear(WIDTH, outputs, bias=False) for outputs in OUTPUTS})
            for _ in range(blocks)
        ]
        return nn.ModuleDict({"blocks": nn.ModuleList(layers)})


def _load(path: Path, blocks: int, device: torch.device, granularity: str) -> nn.Module:
    model = _empty(blocks)
    config = QuantisationConfig(targets=("blocks",), scheme=Scheme(granularity=granularity))
    with open_checkpoint(path) as checkpoint:
        fill(
            model,
            checkpoint,
            {name: name for name in model.state_dict()},
            device=device,
            dtype_of=lambda name: torch.bfloat16,
            quantisation=config,
        )
    return model


def _read_and_cast(path: Path, device: torch.device) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name).to(device).to(FP8) for name in checkpoint.header}


def _load_times(path: Path, blocks: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of every run, and the ratio of the fastest ones. The file is in the system's cache."""
    _read_and_cast(path, device)
    plain: list[float] = []
    loads: dict[str, list[float]] = {granularity: [] for granularity in GRANULARITIES}
    for _ in range(repeats):
        plain.append(_seconds(lambda: _read_and_cast(path, device), device))
        for granularity, times in loads.items():
            times.append(_seconds(lambda kind=granularity: _load(path, blocks, device, kind), device))
    found: dict[str, Any] = {"read_and_cast_s": plain}
    for granularity, times in loads.items():
        found[granularity] = {"s": times, "ratio": min(times) / min(plain)}
    return found


def _memory(path: Path, blocks: int, granularity: str) -> dict[str, Any]:
    """Measured in a new process, whose memory nothing else has touched."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown, size = pool.apply(_grown, (path, blocks, granularity))
    largest = 2 * WIDTH * max(OUTPUTS)
    return {
        "peak_mb": grown / 1e6,
        "result_mb": size / 1e6,
        "largest_tensor_mb": largest / 1e6,
        "ratio": grown / size,
        "within_goal": grown <= MEMORY_GOAL * size + largest,
    }


def _grown(path: Path, blocks: int, granularity: str) -> tuple[int, int]:
    quantise(torch.ones(64, 64), Scheme())  # torch's own buffers
    with Peak() as peak:
        model = _load(path, blocks, torch.device("cpu"), granularity)
    return peak.grown, sum(tensor.nbytes for tensor in model.state_dict().values())


def _quantise_times(device: torch.device, repeats: int) -> dict[str, Any]:
    weight = torch.randn(max(OUTPUTS), WIDTH).bfloat16().to(device)
    cast = _best(lambda: weight.to(FP8), device, repeats)
    found: dict[str, Any] = {"cast_gb_per_s": weight.nbytes / cast / 1e9}
    for granularity in GRANULARITIES:
        scheme = Scheme(granularity=granularity)
        time_of = _best(lambda scheme=scheme: quantise(weight, scheme), device, repeats)
        found[granularity] = {"gb_per_s": weight.nbytes / time_of / 1e9, "ratio": time_of / cast}
    return found


def _linear_times(device: torch.device, repeats: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of forward and backward to the input."""
    weight = torch.randn(max(OUTPUTS), WIDTH).mul_(0.02).bfloat16().to(device)
    plain = nn.Linear(WIDTH, max(OUTPUTS), bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    layers: dict[str, nn.Module] = {}
    for granularity in GRANULARITIES:
        made = quantise(weight, Scheme(granularity=granularity))
        layers[granularity] = Fp8Linear(made.codes, made.scale, None)
        if granularity != "block" and not why_no_fp8_matmul(device, by_row=granularity == "channel"):
            layers[f"{granularity}, fp8_fast"] = Fp8Linear(made.codes, made.scale, None, fast=True)
    x = torch.randn(tokens, WIDTH, device=device).bfloat16().requires_grad_()
    base = _best(lambda: _step(plain, x), device, repeats)
    found: dict[str, Any] = {"tokens": tokens, "bf16_ms": 1e3 * base}
    for name, layer in layers.items():
        time_of = _best(lambda layer=layer: _step(layer, x), device, repeats)
        found[name] = {"ms": 1e3 * time_of, "ratio": time_of / base}
    return found


def _step(layer: nn.Module, x: Tensor) -> None:
    y = layer(x)
    y.backward(torch.ones_like(y))


def _best(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    work()
    return min(_seconds(work, device) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    end = time.perf_counter()
    del result  # giving the memory back is no part of the work
    return end - start


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "folder"}


def _table(result: Mapping[str, Any]) -> str:
    lines = [f"{'':10} {'load':>6} {'memory':>7} {'quantise':>9} {'linear':>7}   (ratios)"]
    for granularity in GRANULARITIES:
        ratios = [result[part][granularity]["ratio"] for part in ("load", "memory", "quantise", "linear")]
        lines.append("{:10} {:6.2f} {:7.3f} {:9.2f} {:7.2f}".format(granularity, *ratios))
    for name in result["linear"]:
        if "fast" in name:
            lines.append(f"{name}: linear {result['linear'][name]['ratio']:.2f}")
    return "\n".join([*lines, f"goals: load {TIME_GOAL}, memory {MEMORY_GOAL} and one tensor, for blocks"])


if __name__ == "__main__":
    sys.exit(main())
