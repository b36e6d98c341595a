"""Prompts that are drawn while a LoRA is trained."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.errors import ConfigError
from musubi_core.files.replace import write_text
from musubi_core.generation.prompt import Prompt
from musubi_core.generation.prompt_files import COMMENT, parse_line
from musubi_core.training.options.samples import SampleOptions

from ..folders import inside, media_roots, temp_folder
from ..inputs import inputs_of, values_from
from ..schema import aliases, schema, validator
from ..values import SamplesType, Settings
from .groups import CATEGORY

NODE = "Sample Prompts"
PROMPTS = "sample_prompts"


def sample_settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigError for a prompt that cannot be read, or that names a file a graph may not read."""
    text = str(given.get("prompts") or "")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith(COMMENT):
            _check_files(parse_line(line, where=f"{NODE}, line {number}"), number)
    values = values_from(SampleOptions, {**given, PROMPTS: None}, where=NODE)
    if not text.strip():
        return Settings(values={})
    path = temp_folder() / "prompts" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    if not path.is_file():
        write_text(path, text)
    return Settings(values={**values, PROMPTS: path})


def _check_files(prompt: Prompt, number: int) -> None:
    roots = media_roots()
    for path in _files_of(prompt):
        if not inside(Path.cwd() / path, roots):
            raise ConfigError(
                f"{NODE}, line {number}: {path} is outside of ComfyUI's folders, so a workflow may not read "
                f"it. Put it below {roots[0]} and give its whole path."
            )


def _files_of(prompt: Prompt) -> Iterator[Path]:
    """Every picture and clip that a prompt begins with or refers to."""
    for field in dataclasses.fields(prompt):
        value = getattr(prompt, field.name)
        yield from (one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, Path))


class SamplePrompts(io.ComfyNode):
    """What is drawn while training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        prompts = io.String.Input(
            "prompts",
            default="",
            multiline=True,
            tooltip="One prompt per line, with flags: a cat --w 832 --h 480 --f 25 --s 20 --d 1 (width, "
            "height, frames, steps, seed). Empty: nothing is drawn.",
        )
        return schema(
            node_id="MusubiSamplePrompts",
            display_name=NODE,
            category=CATEGORY,
            description="Pictures or clips drawn while the LoRA is trained, shown on Train LoRA and in the "
            "dashboard. They never change the training.",
            search_aliases=aliases("preview", "sample images", "validation prompts"),
            inputs=[prompts, *inputs_of(SampleOptions, skip=(PROMPTS,))],
            outputs=[SamplesType.Output("samples", tooltip="To Train LoRA.")],
        )

    validate_inputs = validator(sample_settings, "prompts")

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(sample_settings(given))
