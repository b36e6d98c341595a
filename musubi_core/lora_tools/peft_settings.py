"""The rank and alpha that PEFT and diffusers keep beside the weights instead of in tensors.

PEFT writes adapter_config.json into the folder of adapter_model.safetensors. diffusers writes the same fields
as JSON into the header of its one file, under `lora_adapter_metadata`: a pipeline each behind the name of its
component ("transformer.lora_alpha"), a model by itself without.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_core.errors import BadFileError

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEADER_KEY = "lora_adapter_metadata"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftSettings:
    """What is known of alpha outside the tensors. weights: the file to open.

    fields: PEFT's own names, by the component that they are for ("" for all).
    """

    weights: Path
    source: str = ""  # "header", "adapter_config.json", or "" when nothing is known
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def alpha_of(self, base: str, rank: int) -> float | None:
        """The alpha of one module, by its name in the file, so that alpha / rank is its scale.

        Patterns are PEFT's: regular expressions that match the end of a dotted name; the first counts.
        """
        component, _, rest = base.partition(".")
        fields = self.fields.get(component)
        name = rest if fields is not None else base.removeprefix(PEFT_PREFIX)
        fields = fields if fields is not None else self.fields.get("", {})
        alpha = fields.get("lora_alpha")
        for pattern, value in fields.get("alpha_pattern", {}).items():
            if _matches(pattern, name):
                alpha = value
                break
        if alpha is None:
            return None
        return float(alpha) * math.sqrt(rank) if fields.get("use_rslora") else float(alpha)

    def with_header(self, metadata: Mapping[str, str]) -> PeftSettings:
        """These settings, or those in the header of the weights. Raises BadFileError."""
        if HEADER_KEY not in metadata:
            return self
        where = f"{self.weights}: {HEADER_KEY} in the header"
        by_component: dict[str, dict[str, Any]] = {}
        for name, value in _object(metadata[HEADER_KEY], where).items():
            component, _, plain = name.rpartition(".")
            by_component.setdefault(component, {})[plain] = value
        fields = {component: _checked(values, where) for component, values in by_component.items()}
        return dataclasses.replace(self, source="header", fields=fields)


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def read_settings(path: Path) -> PeftSettings:
    """The settings of a PEFT folder, or of weights that lie in one. Raises BadFileError."""
    config = (path if path.is_dir() else path.parent) / CONFIG_FILE
    if not config.is_file() or not (path.is_dir() or path.name in WEIGHT_FILES):
        return PeftSettings(weights=path)
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(f"{config} cannot be read: {error}.") from error
    fields = {"": _checked(_object(text, str(config)), str(config))}
    inside = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    return PeftSettings(weights=inside[0] if inside else path, source=CONFIG_FILE, fields=fields)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{where} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise BadFileError(f"{where} is not a table of settings.")
    return found


def _checked(fields: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The same fields when those that matter here have a usable value. Raises BadFileError."""
    alpha, patterns = fields.get("lora_alpha"), fields.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise BadFileError(f"{where}: alpha_pattern is {patterns!r}; expected a table of numbers.")
    for name, value in {"lora_alpha": alpha, **patterns}.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number and not (name == "lora_alpha" and value is None):
            raise BadFileError(f"{where}: the alpha of {name} is {value!r}; expected a number.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadFileError(f"{where}: {pattern!r} is no pattern: {error}.") from error
    return {**fields, "alpha_pattern": patterns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """What PEFT must be told of one module."""

    rank: int
    alpha: float


def settings_for(modules: Mapping[str, Strength], *, dora: bool) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig for these modules, by their dotted names."""
    rank = Counter(one.rank for one in modules.values()).most_common(1)[0][0]
    alpha = Counter(one.alpha for one in modules.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": _exceptions({name: one.rank for name, one in modules.items()}, rank),
        "alpha_pattern": _exceptions({name: _plain(one.alpha) for name, one in modules.items()}, alpha),
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": dora,
        "use_rslora": False,
    }


def _exceptions(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """PEFT's pattern table for the modules whose value is not the usual one.

    A pattern also matches every longer name that ends in it ("proj_out" and "blocks.0.proj_out"), and
    programs sort the table as they like, so such names are held to the start.
    """
    return {
        f"^{name}" if any(other.endswith(f".{name}") for other in values) else name: value
        for name, value in values.items()
        if value != usual
    }


def _plain(value: float) -> float:
    """Whole numbers as such, the way PEFT writes them."""
    return int(value) if value == int(value) else value
