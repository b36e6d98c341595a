"""Nested Python values as JSON beside a flat table of tensors, and back, exactly. Nothing is pickled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from musubi_core.errors import TrainingError

_KIND = "~"  # marks what JSON cannot say by itself


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON data; its tensors are added to `tensors` under names that begin with `name`.

    Raises TrainingError for anything but None, numbers, texts, tensors and lists, tuples and dictionaries.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_KIND: "float", "value": repr(value)}
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {_KIND: "tensor", "value": name}
    if isinstance(value, list):
        return [pack(one, tensors, f"{name}/{at}") for at, one in enumerate(value)]
    if isinstance(value, tuple):
        return {_KIND: "tuple", "value": [pack(one, tensors, f"{name}/{at}") for at, one in enumerate(value)]}
    if isinstance(value, Mapping):
        pairs = [
            [pack(key, tensors, name), pack(one, tensors, f"{name}/{key}")] for key, one in value.items()
        ]
        return {_KIND: "dict", "value": pairs}
    raise TrainingError(
        f"{name} is a {type(value).__name__}, which cannot be saved as plain data, so the run could not be "
        "resumed. Use another optimizer or scheduler."
    )


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` took apart."""
    if isinstance(data, list):
        return [unpack(one, tensors) for one in data]
    if not isinstance(data, dict):
        return data
    kind, value = data[_KIND], data["value"]
    if kind == "float":
        return float(value)
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(unpack(one, tensors) for one in value)
    return {unpack(key, tensors): unpack(one, tensors) for key, one in value}
