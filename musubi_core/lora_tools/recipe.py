"""Recipes of resize_lora: which directions of a LoRA are worth their place (reference lora-and-fp8 5.2).

    fro_ckpt=1,thr=-3.5        what is large beside the weights that it changes
    spn_lora=1,thr=-0.7        what is at least a fifth of the largest of its layer
    fro_ckpt=0.8,params=0.2,size=50   at most 50 MiB, cheap layers first

A direction's score is log10 of its singular value less the weighted log10 of what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from musubi_core.config import unknown_key
from musubi_core.errors import ConfigError

OF_BASE = ("spn_ckpt", "fro_ckpt", "subspace")  # these need the base model
SCORES = ("spn_lora", "fro_lora", *OF_BASE, "params")
KEYS = (*SCORES, "thr", "size", "rescale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """weights: by name of the score, sum 1. size: MiB; it wins over thr. rescale: of the LoRA's strength."""

    text: str
    weights: Mapping[str, float]
    thr: float | None
    size: float | None
    rescale: float

    @property
    def needs_base(self) -> bool:
        return any(name in self.weights for name in OF_BASE)

    @property
    def label(self) -> str:
        """For file names: "fro_ckpt=1,thr=-3.5" -> "fro_ckpt1_thr-3.5"."""
        return self.text.replace("=", "").replace(",", "_")


def parse_recipes(text: str) -> tuple[Recipe, ...]:
    """Recipes separated by ":". Raises ConfigError."""
    return tuple(_recipe(part.strip()) for part in text.split(":"))


def _recipe(text: str) -> Recipe:
    found: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in KEYS:
            raise unknown_key(key, KEYS, where=f"recipe {text!r}", kind="key")
        if key in found:
            raise ConfigError(f"recipe {text!r} has {key} twice.")
        if not equals and key not in SCORES:
            raise ConfigError(f"recipe {text!r}: {key} needs a value, e.g. {key}=1.")
        found[key] = _number(value, key, text) if equals else 1.0
    weights = {name: found[name] for name in SCORES if found.get(name)}
    if min(weights.values(), default=0) <= 0:
        raise ConfigError(
            f"recipe {text!r} has no positive score weight: give at least one of {', '.join(SCORES)}, and "
            "none below 0."
        )
    if "thr" not in found and "size" not in found:
        raise ConfigError(f"recipe {text!r} does not say how much to keep: add thr=-3.5 or size=50 (MiB).")
    if found.get("size", 1.0) <= 0 or found.get("rescale", 1.0) <= 0:
        raise ConfigError(f"recipe {text!r}: size and rescale must be above 0.")
    total = sum(weights.values())
    return Recipe(
        text=text,
        weights={name: weight / total for name, weight in weights.items()},
        thr=found.get("thr"),
        size=found.get("size"),
        rescale=found.get("rescale", 1.0),
    )


def _number(value: str, key: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"recipe {text!r}: {key} is {value!r}; expected a number.")
    return number
