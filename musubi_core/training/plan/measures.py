"""What can be done when a run does not fit: the cheapest settings in time, then smaller media.

Every way is enough by itself and is proved by predicting it. Costs are rough: they depend on the card, the
clip and the width of the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from musubi_core.errors import ConfigError
from musubi_core.files.checkpoint import open_checkpoint
from musubi_core.training.config import TrainConfig
from musubi_core.training.opening import Opened
from musubi_core.training.plan.largest import AS_IS, Shrink
from musubi_core.training.plan.memory import Memory

# Shares of the time of a step; estimates. Swap: when all blocks are swapped.
CHECKPOINT_COST, FP8_COST, OFFLOAD_COST, SWAP_COST = 0.3, 0.1, 0.1, 0.4
MOST = 3  # ways by settings that are told


def amount(size: int) -> str:
    """Bytes in words: "13.2 GB", "870 MB", "4 kB"."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run with other settings, or smaller media."""

    opened: Opened
    shrink: Shrink = AS_IS

    def having(self, config: TrainConfig) -> Trial:
        return replace(self, opened=replace(self.opened, config=config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One way to fit. needed: bytes of device memory with it. saved: how many fewer that are.

    config: the run with its settings; None when the data would have to be smaller.
    """

    text: str
    cost: str
    saved: int
    needed: int
    config: TrainConfig | None = None

    def __str__(self) -> str:
        return f"{self.text} (-{amount(self.saved)}, {self.cost})"


Predict = Callable[[Trial], Memory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The largest item: latent frames, pixel frames per latent frame (0 for pictures), width and height."""

    frames: int
    temporal: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Something that can be switched on. cost: share of the time of a step. note: what else it costs."""

    text: str
    cost: float
    on: Callable[[TrainConfig], TrainConfig]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Settings that were tried together, and what the run then needs."""

    settings: frozenset[str]
    text: str
    cost: float
    note: str
    trial: Trial
    needed: int


def cheapest(
    trial: Trial, memory: Memory, limit: int, *, size: Size, lists: Sequence[int], predict: Predict
) -> tuple[Suggestion, ...]:
    """Ways to need at most `limit` bytes: by settings, the fastest first, then by smaller media.

    memory: of the trial as it is. lists: the number of blocks of each kind that may be swapped. When nothing
    is enough, the one way that needs least.
    """
    ways = [way for way in _ways(trial, limit, lists, predict) if way.needed < memory.needed]
    fitting = sorted((way for way in ways if way.needed <= limit), key=lambda way: way.cost)
    told: list[Way] = []
    for way in fitting:
        if not any(other.settings < way.settings for other in told):
            told.append(way)
    found = [_by_settings(way, memory) for way in told[:MOST]]
    strongest = min(ways, key=lambda way: way.needed, default=None)
    start = None if fitting else strongest
    smaller = _smaller_media(trial if start is None else start.trial, limit, size, predict)
    if smaller is not None and (smaller[1] <= limit or (smaller[1] < memory.needed and not found)):
        text = smaller[0] if start is None else f"{start.text} and {smaller[0]}"
        saved = memory.needed - smaller[1]
        found.append(Suggestion(text=text, cost="less to learn from", saved=saved, needed=smaller[1]))
    elif start is not None:
        found.append(_by_settings(start, memory))
    return tuple(found)


def _by_settings(way: Way, memory: Memory) -> Suggestion:
    return Suggestion(
        text=way.text,
        cost=f"about +{100 * way.cost:.0f} % time{way.note}",
        saved=memory.needed - way.needed,
        needed=way.needed,
        config=way.trial.opened.config,
    )


def _ways(trial: Trial, limit: int, lists: Sequence[int], predict: Predict) -> Iterator[Way]:
    """Every set of settings that do not contradict each other or the user's own."""
    settings = _settings(trial.opened)
    for count in range(len(settings) + 1):
        for group in combinations(settings, count):
            config = trial.opened.config
            for setting in group:
                config = setting.on(config)
            if group and _agrees(config):
                yield _way(trial.having(config), group, 0.0, (), predict)
            swapped = _least_swap(trial.having(config), limit, lists, predict)
            if swapped is not None:
                words, cost, swapping = swapped
                yield _way(swapping, group, cost, (words,), predict)


def _way(
    trial: Trial, group: Sequence[Setting], cost: float, words: tuple[str, ...], predict: Predict
) -> Way:
    """words: of the block swap, when there is one."""
    return Way(
        settings=frozenset([*(setting.text for setting in group), *("swap" for _ in words)]),
        text=" ".join([*(setting.text for setting in group), *words]),
        cost=cost + sum(setting.cost for setting in group),
        note="".join(setting.note for setting in group),
        trial=trial,
        needed=predict(trial).needed,
    )


def _settings(opened: Opened) -> tuple[Setting, ...]:
    """What is off and could be on."""
    config = opened.config
    found: list[Setting] = []
    if not config.loop.gradient_checkpointing:
        on = _checkpointing
        found.append(Setting(text="--gradient_checkpointing", cost=CHECKPOINT_COST, on=on))
    if not config.fp8.fp8_base and opened.spec.fp8_targets:
        if _is_fp8(opened):  # scales would round it a second time
            found.append(Setting(text="--fp8_base", cost=FP8_COST, on=_plain_fp8))
        else:
            note = ", weights rounded to 8 bits"
            found.append(Setting(text="--fp8_base --fp8_scaled", cost=FP8_COST, on=_scaled_fp8, note=note))
    if not config.swap.gradient_checkpointing_cpu_offload:
        found.append(Setting(text="--gradient_checkpointing_cpu_offload", cost=OFFLOAD_COST, on=_offload))
    return tuple(found)


def _checkpointing(config: TrainConfig) -> TrainConfig:
    return replace(config, loop=replace(config.loop, gradient_checkpointing=True))


def _scaled_fp8(config: TrainConfig) -> TrainConfig:
    return replace(config, fp8=replace(config.fp8, fp8_base=True, fp8_scaled=True))


def _plain_fp8(config: TrainConfig) -> TrainConfig:
    return replace(config, fp8=replace(config.fp8, fp8_base=True))


def _offload(config: TrainConfig) -> TrainConfig:
    return replace(config, swap=replace(config.swap, gradient_checkpointing_cpu_offload=True))


def _least_swap(
    trial: Trial, limit: int, lists: Sequence[int], predict: Predict
) -> tuple[str, float, Trial] | None:
    """The smallest number of blocks that is enough, or all that may go. None when none may."""
    config, most = trial.opened.config, trial.opened.spec.swap.most(lists)
    now = config.swap.blocks_to_swap
    found = None
    for count in range(now + 1, most + 1):
        changed = replace(config, swap=replace(config.swap, blocks_to_swap=count))
        if not _agrees(changed):
            return None
        found = f"--blocks_to_swap {count}", SWAP_COST * (count - now) / most, trial.having(changed)
        if predict(found[2]).needed <= limit:
            break
    return found


def _smaller_media(trial: Trial, limit: int, size: Size, predict: Predict) -> tuple[str, int] | None:
    """Fewer frames, then smaller ones, until it is enough: what to write, and what is needed then."""
    found = None
    for text, shrink in _shrinks(size):
        found = text, predict(replace(trial, shrink=shrink)).needed
        if found[1] <= limit:
            break
    return found


def _shrinks(size: Size) -> Iterator[tuple[str, Shrink]]:
    frames = size.frames
    for share in (0.75, 0.5, 0.25):
        fewer = max(1, int(size.frames * share))
        if size.temporal and fewer < frames:
            frames = fewer
            yield f"{(fewer - 1) * size.temporal + 1} frames", Shrink(frames=fewer)
    clip = f" with {(frames - 1) * size.temporal + 1} frames" if frames < size.frames else ""
    for side in (0.75, 0.5):
        width, height = (int(pixels * side) // 32 * 32 for pixels in (size.width, size.height))
        if width and height:
            yield f"resolution {width}x{height}{clip}", Shrink(frames=frames, side=side)


def _agrees(config: TrainConfig) -> bool:
    """Whether a measure does not contradict another option."""
    try:
        config.check()
    except ConfigError:
        return False
    return True


def _is_fp8(opened: Opened) -> bool:
    with open_checkpoint(opened.experts[0].path) as checkpoint:
        return any(info.dtype.startswith("float8") for info in checkpoint.header.values())
