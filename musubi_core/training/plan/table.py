"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from musubi_core.training.plan.measures import amount

if TYPE_CHECKING:
    from musubi_core.training.plan.planning import Plan

LEAST = 0.0005  # share of the sum below which a row says nothing


def plan_table(plan: Plan) -> str:
    """Steps, device memory, host memory and disk, and what to change when it does not fit."""
    memory = plan.memory
    epochs = plan.steps / plan.steps_per_epoch
    place = "CPU" if plan.device == "cpu" else "GPU"
    head = [
        f"Plan for {plan.architecture}: {plan.steps} steps, {plan.steps_per_epoch} per epoch, {epochs:.3g} "
        f"epochs of {plan.items} items.",
        f"The largest batch is {plan.batch_size} x {plan.largest}.",
    ]
    tables = [
        *_table(f"Memory on the {place}, at its peak", {**memory.device, "overhead": memory.overhead}),
        *_table("Main memory", memory.host),
        *_table("Disk, at its fullest", plan.disk),
    ]
    return "\n".join([*head, *tables, *_verdict(plan)])


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    total = sum(rows.values())
    shown = {name: size for name, size in rows.items() if size > LEAST * total}
    width = max(map(len, (title, *shown)), default=0)
    lines = [f"  {name:<{width}}  {amount(size):>11}" for name, size in shown.items()]
    return ["", f"{title:<{width + 2}}  {amount(total):>11}", *lines]


def _verdict(plan: Plan) -> list[str]:
    if plan.limit is None:
        return []
    limit, needed = amount(plan.limit), amount(plan.memory.needed)
    if plan.fits:
        return ["", f"It fits: {needed} of {limit}."]
    if not plan.suggestions:
        return ["", f"It does not fit: {needed} of {limit}, and nothing is left that would save memory."]
    lines = [
        f"  {one.text}: {amount(one.needed)} (-{amount(one.saved)}, {one.cost})" for one in plan.suggestions
    ]
    head = f"It does not fit: {needed} of {limit}."
    if plan.suggestions[-1].needed > plan.limit:
        even = "Even so it would not fit. Use a smaller resolution, batch_size or network."
        return ["", f"{head} What saves most:", *lines, even]
    return ["", f"{head} Each of these is enough, the cheapest first:", *lines]
