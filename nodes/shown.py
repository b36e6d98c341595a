"""Results of nodes that are shown on them as well."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor


def shown(text: str, images: Tensor | None, *values: Any) -> io.NodeOutput:
    """The values of a node, with a text and pictures on it. A value that is None blocks what is behind it."""
    about: dict[str, Any] = {"text": [text]}  # a list: ComfyUI joins those of several calls
    if images is not None:
        about |= ui.PreviewImage(images).as_dict()
    return io.NodeOutput(*(ExecutionBlocker(None) if value is None else value for value in values), ui=about)
