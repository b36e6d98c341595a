"""Merge LoRAs, into one or into a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from musubi_core.lora_tools.merge_config import MergeConfig

from ..files import NETWORKS
from ..inference.file_state import state_of
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from ..shown import shown
from .lora_lists import CATEGORY, LorasType, NamedLora
from .results import (
    check_name,
    lora_file,
    lora_outputs,
    lora_values,
    model_file,
    result_inputs,
    run_tool,
)

OF_LISTS = ("lora_weight", "lora_multiplier", "output_file", "dit")
OF_RANKS = ("new_rank", "energy", "size", "disjoint")


def _given_loras(loras: Sequence[NamedLora]) -> dict[str, Any]:
    used = [lora for lora in loras if lora.strength]
    return {
        "lora_weight": tuple(lora.path for lora in used),
        "lora_multiplier": tuple(lora.strength for lora in used),
    }


class MergeLoras(io.ComfyNode):
    """Several LoRAs as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiMergeLoras",
            display_name="Merge LoRAs",
            category=CATEGORY,
            description="Makes one LoRA of several. Exact unless a rank is given: the ranks then add up.",
            search_aliases=aliases("combine loras", "lora stack", "concatenate"),
            is_output_node=True,
            inputs=[
                LorasType.Input("loras", tooltip="From LoRA List, each with its strength."),
                *result_inputs("merged"),
                *inputs_of(MergeConfig, skip=OF_LISTS),
            ],
            outputs=lora_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(check_name, "output_name", "lora_folder", "overwrite")

    @classmethod
    def execute(cls, loras: Sequence[NamedLora], **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.merge import merge_lora

        fixed = {**_given_loras(loras), "output_file": lora_file(given)}
        config = config_from(MergeConfig, given, where="Merge LoRAs", fixed=fixed)
        files, text = run_tool(cls, "Merge LoRAs", lambda emit, stop: merge_lora(config, emit, stop))
        return shown(text, None, *lora_values(files), text)


def _check_model(given: dict[str, Any]) -> None:
    if given.get("output_name") is not None:
        model_file(given)
    if given.get("model_name") is not None:
        NETWORKS.path(str(given["model_name"]), "model_name")


class MergeIntoModel(io.ComfyNode):
    """LoRAs inside a model file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiMergeIntoModel",
            display_name="Merge LoRAs into a Model",
            category=CATEGORY,
            description="Writes a model file with LoRAs inside, into output/diffusion_models. Memory holds a "
            "few weights at a time.",
            search_aliases=aliases("bake lora", "save merged model"),
            is_output_node=True,
            inputs=[
                LorasType.Input("loras", tooltip="From LoRA List, each with its strength."),
                io.Combo.Input(
                    "model_name",
                    options=NETWORKS.names() or ["(no file in diffusion_models)"],
                    tooltip="The model that the LoRAs are for.",
                ),
                *result_inputs("merged-model", lora=False),
                *inputs_of(MergeConfig, skip=(*OF_LISTS, *OF_RANKS)),
            ],
            outputs=[
                io.String.Output("model_file", tooltip="The file in the list of Load Diffusion Model."),
                io.String.Output("report", tooltip="What was done."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(_check_model, "output_name", "overwrite", "model_name")

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> Any:
        return state_of(NETWORKS.path(model_name, "model_name"))

    @classmethod
    def execute(cls, loras: Sequence[NamedLora], model_name: str, **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.merge import merge_lora

        fixed = {
            **_given_loras(loras),
            "dit": NETWORKS.path(model_name, "model_name"),
            "output_file": model_file(given),
        }
        config = config_from(MergeConfig, given, where="Merge LoRAs into a Model", fixed=fixed)
        files, text = run_tool(cls, "Merge into model", lambda emit, stop: merge_lora(config, emit, stop))
        return shown(text, None, files[0].name if files else None, text)
