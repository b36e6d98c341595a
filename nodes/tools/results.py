"""What the tools write, and how they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from musubi_core.errors import ConfigError
from musubi_core.events import Event, Listener, Note, ShouldStop, Warned
from musubi_core.training.options.saving import SavingOptions

from ..training.lora_folder import OUTPUT, folders, lora_folder_input, lora_model
from ..work import work

# (listener, should_stop) -> the files that were written
Tool = Callable[[Listener, ShouldStop], Iterable[Path]]
MODEL_FOLDER = "diffusion_models"  # below the output folder; ComfyUI lists it


def result_inputs(default: str, *, lora: bool = True) -> list[Any]:
    """How the result is called, and where it goes."""
    where = [lora_folder_input()] if lora else []
    return [
        io.String.Input(
            "output_name", default=default, tooltip="Name of the file that is made, without its ending."
        ),
        *where,
        io.Boolean.Input(
            "overwrite",
            default=False,
            optional=True,
            tooltip="Replace a file of this name. Otherwise that is an error, so that nothing gets lost.",
        ),
    ]


def check_name(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a name that no file can have, or that a file has already."""
    if given.get("output_name") is not None:
        lora_file(given)


def lora_file(given: Mapping[str, Any]) -> Path:
    """Where a LoRA goes. Raises ConfigError, see `check_name`."""
    folder = folders()[str(given.get("lora_folder") or OUTPUT)]
    return _free(folder, given)


def model_file(given: Mapping[str, Any]) -> Path:
    """Where a model goes. Raises ConfigError, see `check_name`."""
    return _free(Path(folder_paths.get_output_directory()) / MODEL_FOLDER, given)


def _free(folder: Path, given: Mapping[str, Any]) -> Path:
    name = str(given["output_name"]).strip()
    SavingOptions(output_dir=folder, output_name=name).check()
    path = folder / f"{name}.safetensors"
    if path.exists() and not given.get("overwrite"):
        raise ConfigError(
            f"output_name: {path.name} is in {folder} already. Give another name, or switch overwrite on."
        )
    return path


def run_tool(node: Any, name: str, tool: Tool) -> tuple[tuple[Path, ...], str]:
    """Run a job of the workshop. Returns its files, and what it told in lines.

    node: the node's class while it executes. ComfyUI's lists of files are read again afterwards.
    """
    lines: list[str] = []
    with work(node, name, frees=False) as job:

        def listen(event: Event) -> None:
            if isinstance(event, (Note, Warned)):
                lines.append(event.text)
            job.emit(event)

        files = tuple(tool(listen, job.should_stop))
    for kind in ("loras", MODEL_FOLDER):
        folder_paths.filename_list_cache.pop(kind, None)
    return files, "\n".join([*lines, *(f"Written: {path.name}" for path in files)])


def lora_outputs(*, many: bool = False) -> list[Any]:
    """A LoRA for the graph, its file name, and the report."""
    each = " Several come as a list: what follows runs once for each." if many else ""
    return [
        io.LoraModel.Output("lora", is_output_list=many, tooltip=f"For Load LoRA Model.{each}"),
        io.String.Output("lora_file", is_output_list=many, tooltip="The file in the list of Load LoRA."),
        io.String.Output("report", tooltip="What was done."),
    ]


def lora_values(files: Sequence[Path]) -> tuple[dict[str, Any], str]:
    """The values of the first two outputs for one file. Raises ConfigError when none was made."""
    if not files:
        raise ConfigError("Nothing was written.")
    return lora_model(files[0]), files[0].name
