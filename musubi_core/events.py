"""What a job tells the outside while it runs. A leaf: standard library only.

A job takes a `Listener` (a callable that receives one event) and a `should_stop` callable. The command line
shows events with tqdm, nodes map them to ComfyUI, tests collect them in a list. The core itself never prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a named stage is. `total` is None when it cannot be known."""

    stage: str  # stable words for humans: "latents", "text: llm", "train"
    done: int
    total: int | None
    text: str = ""  # what is being worked on, e.g. a file name


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Scalars of one optimizer step, e.g. {"loss/current": 0.1, "lr/unet": 1e-4}."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A picture or clip made while a job runs: (F, H, W, 3) uint8 numpy array, F = 1 for a picture."""

    step: int
    title: str
    frames: Any
    fps: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWritten:
    """A file or folder is complete on disk."""

    path: Path
    what: str  # for the user: "LoRA", "run state", "latent cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line worth reading, not a problem."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """One line that says what is lost or doubtful, and what to do about it."""

    text: str


Event: TypeAlias = Progress | Metrics | Preview | FileWritten | Note | Warned
Listener: TypeAlias = Callable[[Event], None]
ShouldStop: TypeAlias = Callable[[], bool]


def ignore(event: Event) -> None:
    """The listener of a caller who does not care."""


def never() -> bool:
    """`should_stop` of a caller who does not stop."""
    return False
