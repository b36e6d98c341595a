"""The base model of a training: its files, its architecture and the options of that architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.config import OptionInfo, options_of
from musubi_core.errors import ConfigError
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture, architectures
from musubi_core.models.spec import ArchSpec
from musubi_core.training.options.model import ModelOptions

from ..files import NONE, ModelFile, choosers_for
from ..inputs import config_from, inputs_of
from ..schema import aliases, schema, validator
from ..values import ModelType, TrainingModel

NODE = "Training Model"
CATEGORY = "Musubi/Models"
DETECT = "detect"
FILES_OF_ANY = {  # what every architecture may need, for whoever lets us find out which one it is
    "text_encoder": ("text_encoders", "The text encoder; of two, the larger one (T5, LLaMA)."),
    "text_encoder_2": ("text_encoders", "The second text encoder (CLIP-L), for models that have one."),
    "image_encoder": ("clip_vision", "The image encoder, for image-to-video models that have one."),
}


def option_classes(spec: ArchSpec) -> tuple[type, type, type]:
    """What only this architecture can be told: when caching latents, caching texts, training."""
    return spec.latent_options, spec.text_options, spec.train_options


def architecture_input() -> Any:
    """Which architecture, and below it the options that it alone has."""
    rows = [io.DynamicCombo.Option(DETECT, _files_of_any())]
    rows += [io.DynamicCombo.Option(spec.name, _inputs_of(spec)) for spec in architectures()]
    return io.DynamicCombo.Input(
        "architecture",
        options=rows,
        tooltip="detect: read from the model's file, with default settings. A name: its own settings appear; "
        "needed where files cannot tell.",
    )


def model_inputs() -> list[Any]:
    """Files and architecture."""
    return [
        *inputs_of(ModelOptions, only=("dit", "vae"), choosers=choosers_for(ModelOptions)),
        architecture_input(),
    ]


def model_from(given: Mapping[str, Any]) -> TrainingModel:
    """The model that the inputs describe. Reads the header of its file; raises ConfigError, BadFileError."""
    files = choosers_for(ModelOptions)
    info = {one.name: one for one in options_of(ModelOptions)}
    dit = files["dit"].value(str(given.get("dit") or ""), info["dit"])
    vae = files["vae"].value(str(given.get("vae") or ""), info["vae"])
    if vae is None:
        raise ConfigError(
            f"{NODE}: vae is not chosen. Choose the VAE of this model; latents are made with it."
        )
    about = given.get("architecture") or {}
    about = about if isinstance(about, Mapping) else {"architecture": about}
    name = str(about.get("architecture") or DETECT)
    spec = architecture_of(dit) if name == DETECT else architecture(name)
    chosen = _assigned(spec, about) if name == DETECT else dict(about)
    options: list[Any] = [
        config_from(cls, chosen, where=NODE, choosers=choosers_for(cls)) for cls in option_classes(spec)
    ]
    options[-1] = spec.settle(dit, options[-1])
    for one in options:
        if hasattr(one, "check"):
            one.check()
    return TrainingModel(
        architecture=spec.name,
        dit=dit,
        vae=vae,
        latent_options=options[0],
        text_options=options[1],
        train_options=options[2],
    )


def files_of(model: TrainingModel) -> Iterable[Path]:
    """Every file that the model is made of."""
    yield model.dit
    for options in (model, model.latent_options, model.text_options, model.train_options):
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if isinstance(value, Path) and value != model.dit:
                yield value


def _inputs_of(spec: ArchSpec) -> list[Any]:
    """Each option once, also those that several jobs read."""
    inputs: dict[str, Any] = {}
    for cls in option_classes(spec):
        for one in inputs_of(cls, choosers=choosers_for(cls), skip=tuple(inputs)):
            inputs[one.id] = one
    return list(inputs.values())


def _files_of_any() -> list[Any]:
    rows = []
    for name, (kind, tooltip) in FILES_OF_ANY.items():
        names = [NONE, *ModelFile((kind,)).names()]
        rows.append(io.Combo.Input(name, options=names, default=NONE, optional=True, tooltip=tooltip))
    return rows


def _assigned(spec: ArchSpec, about: Mapping[str, Any]) -> dict[str, str]:
    """The files of unnamed purpose under the names that the architecture has for them, in its order."""
    texts = [info for info in options_of(spec.text_options) if info.type is Path]
    images = [info for info in options_of(spec.latent_options) if info.type is Path]
    names: tuple[tuple[str, list[OptionInfo], int], ...] = (
        ("text_encoder", texts, 0),
        ("text_encoder_2", texts, 1),
        ("image_encoder", images, 0),
    )
    assigned: dict[str, str] = {}
    for name, infos, place in names:
        value = about.get(name) or NONE
        if value == NONE:
            continue
        if place >= len(infos):
            raise ConfigError(
                f"{NODE}: {name} is {value}, but {spec.name} has no use for it. Set it to {NONE}."
            )
        assigned[infos[place].name] = str(value)
    return assigned


class TrainingModelNode(io.ComfyNode):
    """Files of a base model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiTrainingModel",
            display_name=NODE,
            category=CATEGORY,
            description="The base model that a LoRA is trained for: its files from ComfyUI's model folders. "
            "Nothing is loaded yet.",
            search_aliases=aliases("load model", "base model", "checkpoint", "dit", "unet"),
            inputs=model_inputs(),
            outputs=[ModelType.Output("model", tooltip="To the caching nodes and Train LoRA.")],
        )

    validate_inputs = validator(model_from)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        try:
            files = list(files_of(model_from(given)))
        except (ConfigError, OSError) as error:
            return str(error)
        return " ".join(f"{file} {file.stat().st_mtime_ns}" for file in files)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(model_from(given))
