"""Average LoRAs: post-hoc EMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.lora_tools.ema_config import EmaConfig

from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from ..shown import shown
from ..training.lora_folder import lora_model
from .lora_lists import CATEGORY, LorasType, NamedLora
from .results import check_name, lora_file, lora_outputs, result_inputs, run_tool

NODE = "Average LoRAs"
OWN = ("path", "output_file")


def _config(given: dict[str, Any], paths: Sequence[Path]) -> EmaConfig:
    fixed = {"path": tuple(paths), "output_file": lora_file(given)}
    config = config_from(EmaConfig, given, where=NODE, fixed=fixed)
    config.check()
    return config


def _check(given: dict[str, Any]) -> None:
    check_name(given)
    if given.get("output_name") is not None:
        _config(given, (Path("one"), Path("two")))


class AverageLoras(io.ComfyNode):
    """Post-hoc EMA, with a sweep over several widths in one pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiAverageLoras",
            display_name=NODE,
            category=CATEGORY,
            description="Averages the checkpoints of one run after training (post-hoc EMA). The average is "
            "often better than any of them. Several beta or sigma_rel make several LoRAs to compare.",
            search_aliases=aliases(
                "post-hoc ema", "exponential moving average", "merge checkpoints", "sweep"
            ),
            is_output_node=True,
            inputs=[
                LorasType.Input("loras", tooltip="Checkpoints of one run: from Checkpoints of a Run."),
                *result_inputs("average"),
                *inputs_of(EmaConfig, skip=OWN),
            ],
            outputs=lora_outputs(many=True),
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(
        _check,
        *("output_name", "lora_folder", "overwrite"),
        *(field.name for field in dataclasses.fields(EmaConfig) if field.name not in OWN),
    )

    @classmethod
    def execute(cls, loras: Sequence[NamedLora], **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.ema import ema_merge

        config = _config(given, [lora.path for lora in loras])
        files, text = run_tool(cls, NODE, lambda emit, stop: ema_merge(config, emit, stop))
        return shown(text, None, [lora_model(path) for path in files], [path.name for path in files], text)
