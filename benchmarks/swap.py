"""How much longer a training step takes with swapped blocks than without, and what memory it saves.

Both sides are the same random-weight network with gradient checkpointing, in the same process and in turn,
one step each; medians count. On the CPU a copy takes time of the processor that computes, so nothing can be
hidden there: the ratio then shows the cost of the copies and of the bookkeeping. On a card it shows what is
left after copies run beside the computation.

    python benchmarks/swap.py --write
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from circumstances import circumstances, keep

from musubi_core.models.wan.config import WanConfig
from musubi_core.models.wan.model import Wan
from musubi_core.offload.swap import swap

TEXT = 128  # width of the text states


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    results = {
        f"{blocks} of {options.layers} blocks, ring {ring}": measure(options, device, blocks, ring)
        for blocks in (options.layers // 2, options.layers - 1)
        for ring in (1, 2)
    }
    report = {**circumstances("swap.py"), "options": vars(options), "results": results}
    sys.stdout.write(_table(results) + "\n")
    if options.write:
        sys.stdout.write(f"{keep(f'swap-{device.type}', report)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Training steps with and without block swap.")
    parser.add_argument("--steps", type=int, default=9, help="of each side")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--latent", type=int, default=8, help="rows and columns of the latent")
    parser.add_argument("--frames", type=int, default=2, help="of the latent")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", help="cpu or cuda; a card when there is one")
    parser.add_argument("--pageable", action="store_true", help="without pinned memory")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    return parser


def measure(options: argparse.Namespace, device: torch.device, blocks: int, ring: int) -> dict[str, Any]:
    """Seconds of a step without and with swap, and the memory of the weights."""
    plain, swapped = (_network(options).to(device) for _ in range(2))
    held = swap([list(swapped.blocks)], [blocks], ring=ring, device=device, pinned=not options.pageable)
    x, t, text = _inputs(options, device)
    times: dict[int, list[float]] = {id(plain): [], id(swapped): []}
    copied = held.copied
    for _ in range(options.steps + 2):
        copied = held.copied
        for network in (plain, swapped):
            start = _now(device)
            network(x, t, text=text).square().mean().backward()
            times[id(network)].append(_now(device) - start)
    off, on = (statistics.median(times[id(network)][2:]) for network in (plain, swapped))
    result = {
        "off_ms": 1e3 * off,
        "on_ms": 1e3 * on,
        "ratio": on / off,
        "blocks_copied_per_step": held.copied - copied,
        "weights_mb": sum(weight.nbytes for weight in plain.parameters()) / 1e6,
        "saved_mb": sum(one.host_bytes - one.device_bytes for one in held.rings) / 1e6,
    }
    held.release()
    return result


def _network(options: argparse.Namespace) -> Wan:
    config = WanConfig(
        hidden=options.hidden,
        heads=options.hidden // 128,
        layers=options.layers,
        mlp_width=4 * options.hidden,
        in_channels=16,
        out_channels=16,
        text_width=TEXT,
    )
    torch.manual_seed(0)
    return Wan(config, checkpointing=True).requires_grad_(False)


def _inputs(options: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, ...]:
    """x asks for its gradient, so that the backward pass goes through every block."""
    torch.manual_seed(1)
    x = torch.randn(1, 16, options.frames, options.latent, options.latent, device=device)
    t, text = torch.full((1,), 500.0, device=device), torch.randn(1, 64, TEXT, device=device)
    return x.requires_grad_(), t, text


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["case                         off ms     on ms   ratio   copies   saved MB"]
    for name, one in results.items():
        lines.append(
            f"{name:26s} {one['off_ms']:8.1f} {one['on_ms']:9.1f} {one['ratio']:7.3f} "
            f"{one['blocks_copied_per_step']:8d} {one['saved_mb']:10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
