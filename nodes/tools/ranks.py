"""Extract a LoRA from two models, and make a LoRA smaller."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from musubi_core.lora_tools.extract_config import ExtractConfig
from musubi_core.lora_tools.resize_config import ResizeConfig

from ..files import LORAS, NETWORKS, NONE
from ..inference.file_state import state_of
from ..inputs import config_from, inputs_of
from ..pictures import as_image
from ..schema import aliases, schema, validator
from ..shown import shown
from .lora_lists import CATEGORY, check_lora, lora_input
from .results import check_name, lora_file, lora_outputs, lora_values, result_inputs, run_tool

RESIZE_OWN = ("path", "output_file", "dit", "plot")
EXTRACT_OWN = ("model_org", "model_tuned", "output_file", "plot")


def _resize_config(given: dict[str, Any], lora: Path, output: Path, plot: Path | None) -> ResizeConfig:
    base = str(given.get("base_model") or NONE)
    fixed = {
        "path": lora,
        "output_file": output,
        "plot": plot,
        "dit": None if base == NONE else NETWORKS.path(base, "base_model"),
    }
    config = config_from(ResizeConfig, given, where="Resize LoRA", fixed=fixed)
    config.check()
    return config


def _check_resize(given: dict[str, Any]) -> None:
    check_lora(given)
    check_name(given)
    _resize_config(given, Path("lora"), Path("smaller.safetensors"), None)


class ResizeLora(io.ComfyNode):
    """Lower ranks, layer by layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiResizeLora",
            display_name="Resize LoRA",
            category=CATEGORY,
            description="Makes a LoRA smaller by lowering its ranks, layer by layer, and draws its singular "
            "values. Several recipes make several LoRAs.",
            search_aliases=aliases("shrink lora", "rank", "svd", "resize_lora", "prune"),
            is_output_node=True,
            inputs=[
                lora_input(tooltip="The LoRA to make smaller."),
                *result_inputs("smaller"),
                *inputs_of(ResizeConfig, skip=RESIZE_OWN, defaults={"recipe": "spn_lora=1,thr=-1.2"}),
                io.Combo.Input(
                    "base_model",
                    options=[NONE, *NETWORKS.names()],
                    default=NONE,
                    optional=True,
                    tooltip="The model that the LoRA is for. Recipes with fro_ckpt, spn_ckpt or subspace "
                    "compare with it.",
                ),
            ],
            outputs=[
                *lora_outputs(many=True),
                io.Image.Output("singular_values", tooltip="Of each kind of layer, and what stays."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(
        _check_resize,
        *("lora_name", "output_name", "lora_folder", "overwrite", "base_model"),
        *("new_rank", "new_conv_rank", "dynamic_method", "dynamic_param", "recipe"),
    )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        return state_of(LORAS.path(lora_name, "lora_name"))

    @classmethod
    def execute(cls, lora_name: str, **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.resize import resize_lora

        lora, output = LORAS.path(lora_name, "lora_name"), lora_file(given)
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "plot.png"
            config = _resize_config(given, lora, output, plot)
            files, text = run_tool(cls, "Resize LoRA", lambda emit, stop: resize_lora(config, emit, stop))
            picture = read_picture(plot)
        loras, names = zip(*(lora_values([path]) for path in files), strict=True) if files else ((), ())
        return shown(text, picture, list(loras), list(names), text, picture)


def _check_extract(given: dict[str, Any]) -> None:
    check_name(given)
    for name in ("model_org", "model_tuned"):
        if given.get(name) is not None:
            NETWORKS.path(str(given[name]), name)


class ExtractLora(io.ComfyNode):
    """The difference of two models as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = NETWORKS.names() or ["(no file in diffusion_models)"]
        return schema(
            node_id="MusubiExtractLora",
            display_name="Extract LoRA",
            category=CATEGORY,
            description="Makes a LoRA of what a tuned model has that its original has not. Reads both files "
            "weight by weight.",
            search_aliases=aliases("lora from model", "difference", "svd"),
            is_output_node=True,
            inputs=[
                io.Combo.Input("model_org", options=options, tooltip="The model before it was tuned."),
                io.Combo.Input("model_tuned", options=options, tooltip="The tuned model."),
                *result_inputs("extracted"),
                *inputs_of(ExtractConfig, skip=EXTRACT_OWN),
            ],
            outputs=[
                *lora_outputs(),
                io.Image.Output("singular_values", tooltip="Of each kind of layer, and what stays."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(
        _check_extract, "model_org", "model_tuned", "output_name", "lora_folder", "overwrite"
    )

    @classmethod
    def fingerprint_inputs(cls, model_org: str, model_tuned: str, **_: Any) -> Any:
        return [state_of(NETWORKS.path(name, "model")) for name in (model_org, model_tuned)]

    @classmethod
    def execute(cls, model_org: str, model_tuned: str, **given: Any) -> io.NodeOutput:
        from musubi_core.lora_tools.extract import extract_lora

        fixed = {
            "model_org": NETWORKS.path(model_org, "model_org"),
            "model_tuned": NETWORKS.path(model_tuned, "model_tuned"),
            "output_file": lora_file(given),
        }
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "plot.png"
            config = config_from(ExtractConfig, given, where="Extract LoRA", fixed={**fixed, "plot": plot})
            files, text = run_tool(cls, "Extract LoRA", lambda emit, stop: extract_lora(config, emit, stop))
            picture = read_picture(plot)
        return shown(text, picture, *lora_values(files), text, picture)


def read_picture(path: Path) -> Tensor | None:
    """A picture that a tool drew, as an IMAGE; None when it drew none."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return as_image(picture)
