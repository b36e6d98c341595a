"""Nodes that load a model in scaled fp8."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from musubi_core.errors import ConfigError
from musubi_core.lora_tools.fp8_model import check_fp8_model
from musubi_core.quantization.config import SchemeOptions

from .. import running
from ..files import ModelFile
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from .file_state import state_of
from .fp8_loader import Fp8Request, load_fp8_model
from .text_output import collecting

CATEGORY = "Musubi/Inference"
NETWORKS = ModelFile(("diffusion_models", "checkpoints"))
LORAS = ModelFile(("loras",))
MergedLoras = io.Custom("MUSUBI_MERGED_LORAS")  # tuple[tuple[Path, float], ...]: files and strengths


class LoadFp8Model(io.ComfyNode):
    """File in, MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiLoadFp8Model",
            display_name="Load Model in fp8 (Musubi)",
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
                MergedLoras.Input(
                    "loras",
                    optional=True,
                    tooltip="LoRAs to be added to the weights before these are rounded: no time per step, "
                    "but they cannot be changed afterwards. LoRA loaders behind this node are exact too.",
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
            loras=tuple(loras or ()),
            upcast_fp8=upcast_fp8,
        )
        lines: list[str] = []
        with running.job(cls.hidden.unique_id, f"fp8 {request.path.name}") as job:
            model = load_fp8_model(request, emit=collecting(lines, job.emit), should_stop=job.should_stop)
            job.raise_if_cancelled()
        return io.NodeOutput(model, ui={"text": lines})


class MergeLoraBeforeFp8(io.ComfyNode):
    """Names one LoRA file for `LoadFp8Model`; several are chained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiMergeLoraBeforeFp8",
            display_name="LoRA to Merge before fp8 (Musubi)",
            category=CATEGORY,
            description="Names a LoRA that Load Model in fp8 adds to the weights before it rounds them.",
            search_aliases=aliases("merge lora", "bake lora", "fp8 lora"),
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=LORAS.names() or ["(no file in loras)"],
                    tooltip="From the folder loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="1 is the LoRA as it was trained; 0 leaves it out.",
                ),
                MergedLoras.Input(
                    "others", optional=True, tooltip="LoRAs of another node like this, added as well."
                ),
            ],
            outputs=[MergedLoras.Output("loras", tooltip="For Load Model in fp8.")],
        )

    validate_inputs = validator(lambda given: _check_lora(given["lora_name"]), "lora_name")

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        return state_of(LORAS.path(lora_name, "lora_name"))

    @classmethod
    def execute(cls, lora_name: str, strength: float, others: Any = ()) -> io.NodeOutput:
        path = LORAS.path(lora_name, "lora_name")
        others = tuple(others or ())
        if path in [other for other, _ in others]:
            raise ConfigError(
                f"{lora_name} is to be merged twice. Name it once, with the sum of its strengths."
            )
        return io.NodeOutput((*others, (path, strength)) if strength else others)


def _check_model(name: str | None) -> None:
    """Raises MusubiError when the file cannot be loaded by us. None: a link, known later."""
    if name is not None:
        check_fp8_model(NETWORKS.path(name, "model_name"))


def _check_lora(name: str | None) -> None:
    if name is not None:
        LORAS.path(name, "lora_name")


NODES: tuple[type[io.ComfyNode], ...] = (LoadFp8Model, MergeLoraBeforeFp8)
