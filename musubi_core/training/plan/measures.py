"""What can be done when a run does not fit, from what costs least to what costs most.

Costs are rough: they depend on the card, the clip and the width of the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from musubi_core.errors import ConfigError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.training.config import TrainConfig
from musubi_core.training.opening import Opened
from musubi_core.training.plan.largest import AS_IS, Shrink
from musubi_core.training.plan.memory import Memory

SWAP_COST = 0.4  # of the time of a step when all blocks are swapped; an estimate


def amount(size: int) -> str:
    """Bytes in words: "13.2 GB", "870 MB", "4 kB"."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run with some measures taken."""

    opened: Opened
    shrink: Shrink = AS_IS


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One measure on top of those before it. needed: bytes of device memory with all of them.

    config: the run with all of them, as far as they are settings; None once smaller data is among them.
    """

    text: str
    cost: str
    saved: int
    needed: int
    config: TrainConfig | None = None

    def __str__(self) -> str:
        return f"{self.text} (-{amount(self.saved)}, {self.cost})"


Predict = Callable[[Trial], Memory]
Found: TypeAlias = "tuple[str, str, Trial] | None"  # what to write, what it costs, the next trial
Rung: TypeAlias = Callable[[Trial], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The largest item: latent frames, pixel frames per latent frame (0 for pictures), width and height."""

    frames: int
    temporal: int
    width: int
    height: int


def cheapest(
    trial: Trial, memory: Memory, limit: int, *, size: Size, lists: Sequence[int], predict: Predict
) -> Iterator[Suggestion]:
    """Measures one on top of the other until the run needs at most `limit` bytes. None that saves nothing.

    memory: of the trial as it is. lists: the number of blocks of each kind that may be swapped.
    """
    swap = partial(_swap, lists=lists, limit=limit, predict=predict)
    rungs: tuple[Rung, ...] = (_checkpoint, _fp8, _offload, swap, *_smaller(size))
    for rung in rungs:
        if memory.needed <= limit:
            return
        found = rung(trial)
        after = predict(found[2]) if found is not None else memory
        if found is None or after.needed >= memory.needed:
            continue
        saved = memory.needed - after.needed
        trial, memory = found[2], after
        config = trial.opened.config if trial.shrink == AS_IS else None
        yield Suggestion(text=found[0], cost=found[1], saved=saved, needed=memory.needed, config=config)


def _checkpoint(trial: Trial) -> Found:
    config = trial.opened.config
    if config.loop.gradient_checkpointing:
        return None
    config = replace(config, loop=replace(config.loop, gradient_checkpointing=True))
    return _step("--gradient_checkpointing", "about +30 % time", trial, config)


def _fp8(trial: Trial) -> Found:
    opened = trial.opened
    config = opened.config
    if config.fp8.fp8_base or not opened.spec.fp8_targets or _is_fp8(opened):
        return None
    config = replace(config, fp8=replace(config.fp8, fp8_base=True, fp8_scaled=True))
    return _step("--fp8_base --fp8_scaled", "about +10 % time", trial, config)


def _offload(trial: Trial) -> Found:
    config = trial.opened.config
    if config.swap.gradient_checkpointing_cpu_offload or not config.loop.gradient_checkpointing:
        return None
    config = replace(config, swap=replace(config.swap, gradient_checkpointing_cpu_offload=True))
    return _step("--gradient_checkpointing_cpu_offload", "about +10 % time", trial, config)


def _swap(trial: Trial, *, lists: Sequence[int], limit: int, predict: Predict) -> Found:
    """The smallest number of blocks that is enough, or all that may go."""
    config, most = trial.opened.config, trial.opened.spec.swap.most(lists)
    now = config.swap.blocks_to_swap
    found = None
    for count in range(now + 1, most + 1):
        cost = f"about +{100 * SWAP_COST * (count - now) / most:.0f} % time"
        changed = replace(config, swap=replace(config.swap, blocks_to_swap=count))
        found = _step(f"--blocks_to_swap {count}", cost, trial, changed)
        if found is None or predict(found[2]).needed <= limit:
            break
    return found


def _smaller(size: Size) -> Iterator[Rung]:
    """Fewer frames, then smaller ones."""
    frames = size.frames
    for share in (0.75, 0.5, 0.25):
        fewer = max(1, int(size.frames * share))
        if size.temporal and fewer < frames:
            frames = fewer
            yield partial(_shrunk, f"{(fewer - 1) * size.temporal + 1} frames", Shrink(frames=fewer))
    for side in (0.75, 0.5):
        width, height = (int(pixels * side) // 32 * 32 for pixels in (size.width, size.height))
        if width and height:
            yield partial(_shrunk, f"resolution {width}x{height}", Shrink(frames=frames, side=side))


def _shrunk(text: str, shrink: Shrink, trial: Trial) -> tuple[str, str, Trial]:
    return text, "less to learn from", replace(trial, shrink=shrink)


def _step(text: str, cost: str, trial: Trial, config: TrainConfig) -> Found:
    """The next trial; None when the measure contradicts another option of the user."""
    try:
        config.check()
    except ConfigError:
        return None
    return text, cost, replace(trial, opened=replace(trial.opened, config=config))


def _is_fp8(opened: Opened) -> bool:
    """Whether the file is fp8 already, so that scales would round it a second time."""
    with open_checkpoint(opened.experts[0].path) as checkpoint:
        return any(info.dtype.startswith("float8") for info in checkpoint.header.values())
