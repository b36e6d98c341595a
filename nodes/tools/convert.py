"""Convert LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.lora_tools.convert_config import ConvertConfig

from ..files import LORAS
from ..inference.file_state import state_of
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from ..shown import shown
from .lora_lists import CATEGORY, check_lora, lora_input
from .results import check_name, lora_file, lora_outputs, lora_values, result_inputs, run_tool

NODE = "Convert LoRA"
OWN = ("input", "output")


def _output(given: dict[str, Any]) -> Path:
    """A file, or for PEFT a folder, of the chosen name."""
    path = lora_file(given)
    return path.with_suffix("") if given.get("target") == "peft" else path


def _check(given: dict[str, Any]) -> None:
    check_lora(given)
    check_name(given)


class ConvertLora(io.ComfyNode):
    """A LoRA for another program, or for a related model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiConvertLora",
            display_name=NODE,
            category=CATEGORY,
            description="Rewrites a LoRA for another program (musubi-tuner and kohya, ComfyUI, diffusers, "
            "PEFT, diffusion-pipe), or for a related model. Nothing is dropped silently.",
            search_aliases=aliases("lora format", "kohya", "diffusers", "peft", "lora keys not loaded"),
            is_output_node=True,
            inputs=[
                lora_input(tooltip="The LoRA, of any program."),
                *result_inputs("converted"),
                *inputs_of(ConvertConfig, skip=OWN),
            ],
            outputs=lora_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(_check, "lora_name", "output_name", "lora_folder", "overwrite")

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        return state_of(LORAS.path(lora_name, "lora_name"))

    @classmethod
    def execute(cls, lora_name: str, **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.convert import convert_lora

        fixed = {"input": LORAS.path(lora_name, "lora_name"), "output": _output(given)}
        config = config_from(ConvertConfig, given, where=NODE, fixed=fixed)
        files, text = run_tool(cls, NODE, lambda emit, stop: filter(None, [convert_lora(config, emit, stop)]))
        whole = bool(files) and files[0].is_file()  # PEFT's folder is nothing that ComfyUI loads
        return shown(text, None, *(lora_values(files) if whole else (None, None)), text)
