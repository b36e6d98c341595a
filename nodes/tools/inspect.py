"""Inspect: what a file of weights is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..files import ModelFile
from ..inference.file_state import state_of
from ..schema import aliases, schema, validator
from ..shown import shown
from .lora_lists import CATEGORY
from .ranks import read_picture
from .results import run_tool

FILES = ModelFile(("loras", "diffusion_models", "checkpoints", "vae", "text_encoders", "clip_vision"))


def _check(given: dict[str, Any]) -> None:
    if given.get("file") is not None:
        FILES.path(str(given["file"]), "file")


class InspectFile(io.ComfyNode):
    """A LoRA or model in words and as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiInspectFile",
            display_name="Inspect LoRA or Model",
            category=CATEGORY,
            description="Says what a file holds: kind, model family, ranks, training metadata, which "
            "programs load it, and draws the norm of each block.",
            search_aliases=aliases("lora info", "metadata", "what is this file", "norms"),
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "file", options=FILES.names() or ["(no file)"], tooltip="A LoRA, model or encoder."
                ),
                io.Boolean.Input(
                    "norms",
                    default=True,
                    optional=True,
                    tooltip="Also draw the norm of each block. That reads all weights of the file.",
                ),
            ],
            outputs=[
                io.String.Output("description", tooltip="What the file is."),
                io.Image.Output("norms_picture", tooltip="The norm of each block."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(_check, "file")

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> Any:
        return state_of(FILES.path(file, "file"))

    @classmethod
    def execute(cls, file: str, norms: bool = True) -> io.NodeOutput:
        from musubi_core.lora_tools.inspect import description, norms_picture

        path = FILES.path(file, "file")
        text = description(path).replace(str(path), path.name)  # where it lies is nobody else's business
        if not norms:
            return shown(text, None, text, None)
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "norms.png"
            run_tool(
                cls, "Inspect", lambda emit, stop: [plot] if norms_picture(path, plot, emit, stop) else []
            )
            picture = read_picture(plot)
        return shown(text, picture, text, picture)
