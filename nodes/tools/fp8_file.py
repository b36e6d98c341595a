"""Save Model in fp8."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from musubi_core.lora_tools.fp8_file_config import Fp8FileConfig

from ..files import NETWORKS
from ..inference.file_state import state_of
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from ..shown import shown
from ..work import device
from .results import model_file, result_inputs, run_tool

OWN = ("input", "output", "device")


def _check(given: dict[str, Any]) -> None:
    if given.get("output_name") is not None:
        model_file(given)
    if given.get("model_name") is not None:
        NETWORKS.path(str(given["model_name"]), "model_name")


class SaveFp8Model(io.ComfyNode):
    """Half the size, for training or for ComfyUI's own loader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiSaveFp8Model",
            display_name="Save Model in fp8",
            category="Musubi/Inference",
            description="Writes a model with its large weights in scaled fp8: half the size of bf16, into "
            "output/diffusion_models.",
            search_aliases=aliases("quantize", "fp8 scaled", "convert model"),
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=NETWORKS.names() or ["(no file in diffusion_models)"],
                    tooltip="A model in bf16, fp16 or fp32.",
                ),
                *result_inputs("model_fp8", lora=False),
                *inputs_of(Fp8FileConfig, skip=OWN),
            ],
            outputs=[
                io.String.Output("model_file", tooltip="The file in the list of Load Diffusion Model."),
                io.String.Output("report", tooltip="What it cost, by kind of layer."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(_check, "model_name", "output_name", "overwrite")

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> Any:
        return state_of(NETWORKS.path(model_name, "model_name"))

    @classmethod
    def execute(cls, model_name: str, **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.fp8_file import quantise_file

        fixed = {
            "input": NETWORKS.path(model_name, "model_name"),
            "output": model_file(given),
            "device": device(),
        }
        config = config_from(Fp8FileConfig, given, where="Save Model in fp8", fixed=fixed)
        files, text = run_tool(
            cls, "Save in fp8", lambda emit, stop: filter(None, [quantise_file(config, emit, stop)])
        )
        return shown(text, None, files[0].name if files else None, text)
