"""What a drawing was made of, for the metadata of its files. Names of files, never folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import musubi_core
from musubi_core.generation.opening import OpenedModel, lora_facts
from musubi_core.generation.outputs import Facts
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.settings import DrawSettings


def facts_of(opened: OpenedModel, settings: DrawSettings) -> Facts:
    """JSON values; empty when the user wants none."""
    config = opened.config
    if config.output.no_metadata:
        return {}
    facts: dict[str, Any] = {
        "program": f"musubi_core {musubi_core.__version__}",
        "architecture": opened.spec.name,
        **settings_facts(settings),
        "fps": config.output.fps or opened.spec.sampling_with(opened.arch.train).fps,
        "model": [expert.path.name for expert in opened.experts],
        "vae": _name(config.model.vae),
        "loras": lora_facts(opened.loras),
        "fp8": config.model.fp8 or None,
        "options": _shared(opened),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def settings_facts(settings: DrawSettings) -> dict[str, Any]:
    """What of them decides a drawing."""
    given = settings.given
    pictures = [path for path in (given.image, given.end_image, given.control_video) if path]
    return {
        "prompt": settings.text,
        "negative_prompt": settings.negative_prompt,
        "seed": settings.seed,
        "width": settings.width,
        "height": settings.height,
        "frames": settings.frames,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "cfg_scale": list(settings.cfg_scales),
        "flow_shift": settings.shift,
        "sampler": settings.sampler,
        "pictures": [path.name for path in (*pictures, *given.control_images)],
    }


def _shared(opened: OpenedModel) -> dict[str, Any]:
    """Options of the networks that the VAE knows too: without them a latent could not be decoded."""
    names = {one.name for one in dataclasses.fields(opened.arch.latent)}
    values = {name: getattr(opened.arch.train, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float))}


def _pictures(given: Prompt) -> list[Path]:
    single = (given.image, given.end_image, given.control_video, given.video)
    return [path for path in (*single, *given.control_images) if path is not None]


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name
