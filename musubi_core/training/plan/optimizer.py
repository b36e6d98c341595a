"""How much memory an optimizer keeps, found out by asking it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from musubi_core.training.optimizers import build_optimizer, optimizer_class
from musubi_core.training.options.optimizer import OptimizerOptions

BLOCK = 256  # numbers that share a scale in the 8-bit optimizers of bitsandbytes
SMALL = 4096  # parameters below this keep their state in float32 there


def state_bytes(options: OptimizerOptions, shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes of the optimizer's state for parameters of these shapes.

    One step is made on the CPU with one parameter of each shape, so it holds for any optimizer that runs
    there. The 8-bit ones need a card; theirs is two bytes per number and its share of two scales.
    """
    if optimizer_class(options.optimizer_type).__module__.startswith("bitsandbytes."):
        return sum(_in_8_bits(torch.Size(shape).numel()) for shape in shapes)
    counts = Counter(shapes)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in counts]
    optimizer = build_optimizer(options, [{"params": parameters, "lr": options.learning_rate}]).optimizer
    if hasattr(optimizer, "train"):
        optimizer.train()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return sum(
        times * _bytes(optimizer.state[parameter].values())
        for parameter, times in zip(parameters, counts.values(), strict=True)
    )


def _bytes(values: object) -> int:
    found = [one for one in values if isinstance(one, Tensor)]  # type: ignore[attr-defined]
    return sum({one.untyped_storage().data_ptr(): one.nbytes for one in found}.values())


def _in_8_bits(numbers: int) -> int:
    return 8 * numbers if numbers < SMALL else 2 * numbers + 8 * -(-numbers // BLOCK)
