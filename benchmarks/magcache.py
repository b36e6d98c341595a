"""How much faster a drawing of 50 steps is with MagCache, and how far its result is from the full one.

A random-weight network is asked with and without a negative prompt, uncached and cached in turn in one
process; medians count. Its ratios are measured first, by a calibration run. `predicted` is what the plan
promises if blocks were all that costs time: evaluations divided by those that are not skipped. PSNR compares
the final latents, with the range of the full one as peak; random weights say nothing of real pictures, only
that more error is allowed from case to case.

    python benchmarks/magcache.py --write
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from circumstances import circumstances, keep
from torch import Tensor

from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import Wan
from musubi_core.sampling.euler import euler
from musubi_core.sampling.guidance import guided
from musubi_core.sampling.magcache import always_computed, nearest, skip_plan
from musubi_core.sampling.magcache_calibration import measured_table
from musubi_core.sampling.magcache_config import SkipRule
from musubi_core.sampling.magcache_run import CalibrationRun, MagCacheRun
from musubi_core.sampling.magcache_tables import RatioTable
from musubi_core.sampling.solving import flow_times, last
from musubi_core.sampling.through import Through, straight

TEXT = 128  # width of the text states
RULES = {
    "careful": SkipRule(threshold=0.04, k=2),
    "balanced": SkipRule(threshold=0.1, k=3),
    "default": SkipRule(),
}
Draw = Callable[[Callable[[str, int], Through]], Tensor]


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.no_grad():
        results = {
            f"{name}, {'guided' if scale > 1 else 'one question'}": result
            for scale in (1.0, 4.0)
            for name, result in measure(options, device, scale).items()
        }
    report = {**circumstances("magcache.py"), "options": vars(options), "results": results}
    sys.stdout.write(_table(results) + "\n")
    if options.write:
        sys.stdout.write(f"{keep(f'magcache-{device.type}', report)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Drawings with and without MagCache.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="drawings of each kind")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--latent", type=int, default=16, help="rows and columns of the latent")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", help="cpu or cuda; a card when there is one")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser


def measure(options: argparse.Namespace, device: torch.device, scale: float) -> dict[str, dict[str, Any]]:
    """For each of RULES what a drawing takes, and how near it comes."""
    counts: list[int] = []
    draw = _drawing(options, device, scale, counts)
    calibration = CalibrationRun()
    full = draw(calibration.through)
    table = measured_table("benchmark", "random", calibration.measures, {})
    fixed = always_computed([0] * options.steps, SkipRule().retention)
    times: dict[str, list[float]] = {name: [] for name in ("full", *RULES)}
    found: dict[str, Tensor] = {}
    evaluations: dict[str, int] = {}
    for _ in range(options.rounds):
        for name in times:
            counts.clear()
            through = _uncached if name == "full" else _run(table, RULES[name], fixed).through
            start = _now(device)
            found[name] = draw(through)
            times[name].append(_now(device) - start)
            evaluations[name] = len(counts)
    assert torch.equal(found["full"], full), "calibration changes nothing"
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "full_s": seconds["full"],
            "cached_s": seconds[name],
            "speedup": seconds["full"] / seconds[name],
            "predicted": evaluations["full"] / _planned(table, rule, fixed),
            "evaluations": evaluations["full"],
            "evaluations_run": evaluations[name],
            "evaluations_planned": _planned(table, rule, fixed),
            "psnr_db": _psnr(found[name], full),
        }
        for name, rule in RULES.items()
    }


def _drawing(options: argparse.Namespace, device: torch.device, scale: float, counts: list[int]) -> Draw:
    """A drawing whose tokens pass the blocks as told. `counts` grows each time the blocks run."""
    network = _network(options).to(device)
    network.blocks[0].register_forward_hook(lambda *_: counts.append(1))
    torch.manual_seed(1)
    noise = torch.randn(1, 16, 1, options.latent, options.latent, device=device)
    texts = {branch: torch.randn(1, 64, TEXT, device=device) for branch in ("cond", "uncond")}

    def draw(through: Callable[[str, int], Through]) -> Tensor:
        times = flow_times(options.steps, 5.0)
        steps = {t: number for number, t in enumerate(times.tolist())}

        def ask(branch: str, x: Tensor, t: float) -> Tensor:
            level = torch.full((1,), 1000 * t, device=device)
            return network(x, level, text=texts[branch], through=through(branch, steps[t]))

        def denoise(x: Tensor, t: float) -> Tensor:
            cond = ask("cond", x, t)
            return cond if scale == 1 else guided(cond, ask("uncond", x, t), scale)

        return last(euler(denoise, noise, times))

    return draw


def _network(options: argparse.Namespace) -> Wan:
    config = WanConfig(
        hidden=options.hidden,
        heads=options.hidden // 128,
        layers=options.layers,
        mlp_width=4 * options.hidden,
        text_width=TEXT,
    )
    torch.manual_seed(0)
    return Wan(config).requires_grad_(False).eval()


def _uncached(branch: str, step: int) -> Through:
    return straight


def _run(table: RatioTable, rule: SkipRule, fixed: Sequence[bool]) -> MagCacheRun:
    return MagCacheRun(lambda branch: nearest(table.of(branch), len(fixed)), rule, fixed)


def _planned(table: RatioTable, rule: SkipRule, fixed: Sequence[bool]) -> int:
    """Evaluations that are not skipped, over all branches."""
    return sum(skip_plan(ratios, rule, fixed).count(False) for ratios in table.ratios.values())


def _psnr(found: Tensor, full: Tensor) -> float:
    """Decibels; the peak is the range of `full`."""
    error = float((found - full).square().mean())
    return math.inf if error == 0 else 10 * math.log10(float(full.max() - full.min()) ** 2 / error)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["case                      full s  cached s  speedup  predicted   runs  planned   PSNR dB"]
    for name, one in results.items():
        lines.append(
            f"{name:24s} {one['full_s']:7.2f} {one['cached_s']:9.2f} {one['speedup']:8.2f} "
            f"{one['predicted']:10.2f} {one['evaluations_run']:6d} {one['evaluations_planned']:8d} "
            f"{one['psnr_db']:9.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
