"""The node that loads a model in scaled fp8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.errors import ConfigError
from musubi_core.lora_tools.fp8_model import check_fp8_model
from musubi_core.quantization.config import SchemeOptions

from .. import running
from ..files import NETWORKS
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from .file_state import state_of
from .fp8_loader import Fp8Request, load_fp8_model
from .text_output import collecting

CATEGORY = "Musubi/Inference"
Loras = io.Custom("MUSUBI_LORAS")  # files with strengths, from LoRA List


class LoadFp8Model(io.ComfyNode):
    """File in, MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiLoadFp8Model",
            display_name="Load Model in fp8",
            category=CATEGORY,
            description="Loads a model with its large weights in 8 bits, with a scale for every 64 of them: "
            "half the memory of bf16, and closer to it than ComfyUI's own fp8. Works with KSampler and every "
            "LoRA loader.",
            search_aliases=aliases(
                "fp8 scaled", "quantize", "load diffusion model", "unet loader", "low vram"
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=NETWORKS.names() or ["(no file in diffusion_models)"],
                    tooltip="A bf16, fp16 or fp32 file is rounded while it is read. A file that is fp8 "
                    "already, by quantize-fp8 or from elsewhere, is taken as it is, with its own scales.",
                ),
                *inputs_of(SchemeOptions),
                Loras.Input(
                    "loras",
                    optional=True,
                    tooltip="From LoRA List: added to the weights before these are rounded. They cost no "
                    "time per step, but are fixed then. LoRA loaders behind this node are exact too.",
                ),
                io.Boolean.Input(
                    "upcast_fp8",
                    default=False,
                    optional=True,
                    tooltip="Merge LoRAs also into a file that is fp8 already. Its weights are rounded a "
                    "second time, so a bf16 file is better.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="As from Load Diffusion Model, with half the memory.")],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(lambda given: _check_model(given["model_name"]), "model_name")

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> Any:
        return state_of(NETWORKS.path(model_name, "model_name"))

    @classmethod
    def execute(
        cls, model_name: str, loras: Any = None, upcast_fp8: bool = False, **scheme: Any
    ) -> io.NodeOutput:
        options = config_from(SchemeOptions, scheme, where="Load Model in fp8")
        request = Fp8Request(
            path=NETWORKS.path(model_name, "model_name"),
            scheme=options.scheme(),
            loras=_loras(loras),
            upcast_fp8=upcast_fp8,
        )
        lines: list[str] = []
        with running.job(cls.hidden.unique_id, f"fp8 {request.path.name}") as job:
            model = load_fp8_model(request, emit=collecting(lines, job.emit), should_stop=job.should_stop)
            job.raise_if_cancelled()
        return io.NodeOutput(model, ui={"text": lines})


def _check_model(name: str | None) -> None:
    """Raises MusubiError when the file cannot be loaded by us. None: a link, known later."""
    if name is not None:
        check_fp8_model(NETWORKS.path(name, "model_name"))


def _loras(given: Any) -> tuple[tuple[Path, float], ...]:
    """Files and strengths of a list of LoRAs. Raises ConfigError for a file that is in it twice."""
    found = [(one.path, one.strength) for one in given or () if one.strength]
    paths = [path for path, _ in found]
    twice = [path.name for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise ConfigError(f"{twice[0]} is to be merged twice. Name it once, with the sum of its strengths.")
    return tuple(found)


NODES: tuple[type[io.ComfyNode], ...] = (LoadFp8Model,)
