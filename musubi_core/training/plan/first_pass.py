"""Finding out at once whether a run fits, and saying why when it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from musubi_core.device.memory import card_memory, forget_peak, memory_in_use
from musubi_core.errors import MusubiError, TrainingError
from musubi_core.events import Note
from musubi_core.training.inputs import Prepared
from musubi_core.training.opening import Opened
from musubi_core.training.plan.largest import largest_batch
from musubi_core.training.plan.live_bytes import LiveBytes
from musubi_core.training.plan.measures import amount
from musubi_core.training.plan.memory import STATES
from musubi_core.training.plan.planning import plan_opened, prepare_largest
from musubi_core.training.plan.rehearsal import claim_parts
from musubi_core.training.step import Stepper

TENTH_LESS = 0.9  # of the prediction, when it says that the run fits and the card does not agree


def check_fit(opened: Opened, stepper: Stepper) -> None:
    """One forward and backward pass on the largest batch; tells what it took and what was predicted.

    Nothing is updated, gradients are cleared, and every later draw follows from its own seed, so the run is
    the same to the last bit.
    """
    batch = largest_batch(opened.training, opened.fresh.seed)
    prepared = prepare_largest(opened, batch)
    gradients = stepper.gradients
    took = _peak_of(stepper, prepared)
    gradients.clear()
    if not opened.here.main:
        return
    opened.emit(Note(text=f"The first pass on the largest batch took {amount(took)}; {_predicted(opened)}"))


def _predicted(opened: Opened) -> str:
    try:
        plan = plan_opened(opened, advise=False)
    except TrainingError as problem:
        return str(problem)  # the pass itself has shown that the run fits
    states = plan.memory.device[STATES]  # the optimizer makes them in its first step
    size = f"{plan.batch_size} x {plan.largest}"
    predicted = f"{amount(plan.memory.tensors - states)} were predicted ({size})."
    return f"{predicted} The optimizer adds {amount(states)}."


def _peak_of(stepper: Stepper, prepared: Prepared) -> int:
    """The most bytes of tensors in a pass: told by torch on a card, counted on the CPU."""
    device = stepper.processes.device
    work = partial(stepper.backward, prepared, len(prepared.noisy))
    counter = LiveBytes(device)
    if device.type == "cpu":
        claim_parts(counter, stepper, prepared)
        with counter:
            work()
        return counter.peak
    forget_peak(device)
    stepper.compiled.attempt(work, held=stepper.gradients.buffer)
    use = memory_in_use(device)
    return 0 if use is None else use.peak


def wanted(choice: str, device: torch.device) -> bool:
    """What --check_fit means on this device."""
    return choice == "always" or (choice == "auto" and device.type == "cuda")


@contextlib.contextmanager
def explained(opened: Opened, step: Callable[[], int]) -> Iterator[None]:
    """Turns running out of device memory into a TrainingError that says what would help.

    step: the steps finished so far.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        at = step()
        # The frames of the error hold the tensors of the failed step; the plan needs none of them.
        raise TrainingError(out_of_memory(opened, at)) from error.with_traceback(None)


def out_of_memory(opened: Opened, step: int) -> str:
    """The message, with the plan's advice. It is computed without memory of the device."""
    card = card_memory(opened.here.device)
    try:
        plan = plan_opened(opened)
        found = plan if plan.suggestions else plan_opened(opened, limit=int(TENTH_LESS * plan.memory.needed))
    except MusubiError as problem:
        return f"Out of memory at step {step}. What would help could not be worked out: {problem}"
    limit = plan.limit
    has = "" if limit is None else f", {'card has' if limit == card else 'the limit is'} {amount(limit)}"
    head = (
        f"Out of memory at step {step} on the largest item ({plan.largest}): needed "
        f"{amount(plan.memory.needed)}{has}."
    )
    ways = "; ".join(map(str, found.suggestions))
    if not ways:
        return f"{head} Use a smaller resolution, fewer frames or a smaller batch_size."
    enough = found.limit is not None and found.suggestions[-1].needed <= found.limit
    if plan.suggestions:
        told = "Cheapest ways to fit" if enough else "Nothing is enough to fit; what saves most"
        return f"{head} {told}: {ways}."
    told = "Cheapest ways to need a tenth less" if enough else "What saves most"
    return (
        f"{head} That is a prediction, and other programs may hold memory of the card: close them. "
        f"{told}: {ways}."
    )
