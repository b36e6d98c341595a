"""The rank and alpha that PEFT and diffusers keep beside the weights instead of in tensors.

PEFT writes adapter_config.json into the folder of adapter_model.safetensors; diffusers writes the same fields
as JSON into the header of its one file, under `lora_adapter_metadata`, each behind the name of the component
("transformer.lora_alpha").
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_core.errors import BadFileError

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEADER_KEY = "lora_adapter_metadata"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "unet.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftSettings:
    """What is known of alpha outside the tensors. weights: the file to open. fields: PEFT's own names."""

    weights: Path
    source: str = ""  # "header", "adapter_config.json", or "" when nothing is known
    fields: Mapping[str, Any] = field(default_factory=dict)

    def alpha_of(self, base: str, rank: int) -> float | None:
        """The alpha of one module, by its name in the file, so that alpha / rank is its scale.

        Patterns are PEFT's: regular expressions that match the end of a dotted name; the first counts.
        """
        name = base
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        alpha = self.fields.get("lora_alpha")
        for pattern, value in self.fields.get("alpha_pattern", {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        if alpha is None:
            return None
        return float(alpha) * math.sqrt(rank) if self.fields.get("use_rslora") else float(alpha)

    def with_header(self, metadata: Mapping[str, str]) -> PeftSettings:
        """These settings, or those in the header of the weights. Raises BadFileError."""
        if HEADER_KEY not in metadata:
            return self
        where = f"{self.weights}: {HEADER_KEY} in the header"
        packed = _object(metadata[HEADER_KEY], where)
        fields = {name.partition(".")[2]: value for name, value in packed.items() if "." in name}
        return dataclasses.replace(self, source="header", fields=_checked(fields, where))


def read_settings(path: Path) -> PeftSettings:
    """The settings of a PEFT folder, or of weights that lie in one. Raises BadFileError."""
    config = (path if path.is_dir() else path.parent) / CONFIG_FILE
    inside = path.is_dir() or path.name in WEIGHT_FILES
    if not inside or not config.is_file():
        return PeftSettings(weights=path)
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(f"{config} cannot be read: {error}.") from error
    weights = path
    if path.is_dir():
        weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), path)
    return PeftSettings(
        weights=weights, source=CONFIG_FILE, fields=_checked(_object(text, str(config)), str(config))
    )


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
