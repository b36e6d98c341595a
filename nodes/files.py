"""Files that a graph chooses by name from ComfyUI's lists, see `inputs.Chooser`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from musubi_core.config import OptionInfo, options_of
from musubi_core.errors import ConfigError

from .folders import absolute, inside, not_found
from .inputs import Chooser, more

NONE = "none"
MODEL_LISTS = ("diffusion_models", "checkpoints", "text_encoders", "clip_vision", "vae", "loras")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of one or several of ComfyUI's model lists."""

    lists: tuple[str, ...]

    def input(self, info: OptionInfo) -> Any:
        if info.many:
            return io.String.Input(info.name, default="", multiline=True, **more(info))
        options = self.names() if info.required else [NONE, *self.names()]
        # An empty list cannot be chosen from, and would not say why.
        options = options or [f"(no file in {self.lists[0]})"]
        return io.Combo.Input(info.name, options=options, default=options[0], **more(info))

    def value(self, text: str, info: OptionInfo) -> Path | tuple[Path, ...] | None:
        if info.many:
            return tuple(self.path(line.strip(), info.name) for line in text.splitlines() if line.strip())
        return None if text in (NONE, "") and not info.required else self.path(text, info.name)

    def names(self) -> list[str]:
        """What may be chosen, in the order of the lists."""
        return list(
            dict.fromkeys(name for each in self.lists for name in folder_paths.get_filename_list(each))
        )

    def path(self, text: str, option: str) -> Path:
        """Where the file is. Raises ConfigError when no list has it."""
        for each in self.lists:
            if text in folder_paths.get_filename_list(each):
                return _whole(Path(folder_paths.get_full_path_or_raise(each, text)))
        raise not_found(text, self.names(), where=option)


def _whole(file: Path) -> Path:
    """The folder of a file that is part of a model in Hugging Face's layout, else the file."""
    part = file.name.startswith(("model", "pytorch_model")) and (file.parent / "config.json").is_file()
    return file.parent if part else file


@dataclass(frozen=True, slots=True)
class TokenizerName:
    """A folder below ComfyUI's model folders, or the name of a tokenizer on Hugging Face."""

    def input(self, info: OptionInfo) -> Any:
        return io.String.Input(info.name, default="", **more(info))

    def value(self, text: str, info: OptionInfo) -> str | None:
        text = text.strip()
        if not text:
            return None
        models = Path(folder_paths.models_dir)
        path = absolute(models / text)
        if inside(path, [models]) and path.is_dir():
            return str(path)
        if HUB_NAME.fullmatch(text) and not Path(text).exists():
            return text
        raise ConfigError(
            f"{info.name}: {text!r} is neither a folder below {models} nor a Hugging Face name such as "
            "google/umt5-xxl."
        )


NETWORKS = ModelFile(("diffusion_models", "checkpoints"))
LORAS = ModelFile(("loras",))
FILES: Mapping[str, Chooser] = {
    "dit": NETWORKS,
    "dit_high_noise": ModelFile(("diffusion_models",)),
    "vae": ModelFile(("vae", "checkpoints")),
    "clip": ModelFile(("clip_vision",)),
    "image_encoder": ModelFile(("clip_vision",)),
    "network_weights": LORAS,
    "base_weights": LORAS,
}


def choosers_for(*classes: type) -> dict[str, Chooser]:
    """A chooser for every option of these dataclasses that is a file, or stands for one."""
    found: dict[str, Chooser] = {}
    for info in (info for cls in classes for info in options_of(cls)):
        if info.name.startswith("tokenizer"):
            found[info.name] = TokenizerName()
        elif info.type is Path:
            found[info.name] = FILES.get(info.name) or _by_name(info.name)
    return found


def _by_name(name: str) -> Chooser:
    """For files that only one architecture has: all text encoders, or any model file."""
    is_text = name.startswith(("text_encoder", "t5", "clip", "llm"))
    return ModelFile(("text_encoders",) if is_text else MODEL_LISTS)
