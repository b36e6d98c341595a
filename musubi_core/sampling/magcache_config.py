"""The options of MagCache, as the command line, config files and nodes give them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musubi_core.config import option
from musubi_core.errors import ConfigError

SHIPPED = "0"
BRANCHES = ("cond", "uncond")  # of guidance: the prompt and the negative prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRule:
    """When the blocks of a network may be skipped.

    threshold: below which the modelled error of one row of skipped steps, summed, must stay; 0 skips nothing.
    k: the longest row. retention: the first part of the steps, and at least one, that is always computed.
    """

    threshold: float = 0.24
    k: int = 6
    retention: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSource:
    """Where the magnitude ratios come from: exactly one of a file, lists, or neither for those we ship.

    lists: of the first of BRANCHES, and of the second where it has its own.
    """

    file: Path | None = None
    lists: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MagCacheConfig:
    """Skipping the blocks of the network where they add almost what they added a step before."""

    magcache_mag_ratios: str | None = option(
        None,
        help="Turns MagCache on. How much the blocks add at each step compared with the step before: a file "
        "of a calibration run, a list such as 1.0,1.02,0.99 (of guided runs a second one for the negative "
        "prompt may follow after a semicolon), or 0 for the ratios that come with the program.",
    )
    magcache_retention_ratio: float = option(
        0.2, ge=0.0, le=1.0, help="MagCache: the first part of the steps, which is always computed in full."
    )
    magcache_threshold: float = option(
        0.24,
        ge=0.0,
        help="MagCache: the largest error that the ratios may predict for a row of skipped steps. Lower is "
        "closer to the picture without MagCache, and slower; 0 skips nothing.",
    )
    magcache_k: int = option(6, ge=0, help="MagCache: the most steps that are skipped in a row.")
    magcache_calibration: bool = option(
        False,
        help="Measure the ratios of this model, size and number of steps in a run that skips nothing, and "
        "write them to a file for --magcache_mag_ratios.",
    )

    @property
    def on(self) -> bool:
        """Whether anything is to be measured or skipped."""
        return self.magcache_calibration or self.magcache_mag_ratios is not None

    @property
    def rule(self) -> SkipRule:
        return SkipRule(
            threshold=self.magcache_threshold, k=self.magcache_k, retention=self.magcache_retention_ratio
        )

    @property
    def source(self) -> RatioSource | None:
        """What --magcache_mag_ratios names; None without it. Raises ConfigError for a broken list."""
        return None if self.magcache_mag_ratios is None else ratio_source(self.magcache_mag_ratios)


def ratio_source(text: str) -> RatioSource:
    """The value of --magcache_mag_ratios. Raises ConfigError for lists that are no ratios."""
    words = text.strip()
    if words == SHIPPED:
        return RatioSource()
    first = words.partition(";")[0].partition(",")[0]
    if "," not in words and not _is_number(first):
        if not words:
            raise ConfigError(f"--magcache_mag_ratios is empty. {_EXPECTED}")
        return RatioSource(file=Path(words))
    lists = tuple(_ratios(part) for part in words.split(";"))
    if len(lists) > len(BRANCHES):
        raise ConfigError(
            f"--magcache_mag_ratios has {len(lists)} lists between semicolons; expected one, or two: that of "
            "the prompt and that of the negative prompt."
        )
    return RatioSource(lists=lists)


_EXPECTED = "Expected a file of a calibration run, numbers with commas between them, or 0."


def _ratios(text: str) -> tuple[float, ...]:
    words = [word.strip() for word in text.split(",")]
    bad = [word for word in words if not _is_number(word)]
    if bad:
        raise ConfigError(f"--magcache_mag_ratios: {bad[0]!r} in the list is not a number. {_EXPECTED}")
    return checked_ratios([float(word) for word in words], where="--magcache_mag_ratios")


def checked_ratios(ratios: list[float], *, where: str) -> tuple[float, ...]:
    """The same ratios. Raises ConfigError when there are fewer than two, or one is no positive number."""
    if len(ratios) < 2:
        raise ConfigError(
            f"{where}: a list of {len(ratios)} ratios are no run. Expected one per step, 1.0 first."
        )
    for index, ratio in enumerate(ratios):
        if not 0 < ratio < float("inf"):
            raise ConfigError(f"{where}: ratio {index + 1} is {ratio}; expected a positive number near 1.")
    return tuple(ratios)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
