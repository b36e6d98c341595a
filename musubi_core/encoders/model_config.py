"""What a Hugging Face folder says of a text model in its config.json. Single files have none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musubi_core.config import read_json
from musubi_core.errors import BadFileError


def read_model_config(path: Path) -> Mapping[str, Any]:
    """The settings of the text model: of a multimodal model its `text_config`. Empty for a single file.

    Raises BadFileError if a folder has no config.json.
    """
    if not path.is_dir():
        return {}
    file = path / "config.json"
    if not file.is_file():
        raise BadFileError(
            f"{path} has no config.json, so it is not the folder of a Hugging Face model. Give the folder "
            "that holds config.json and the .safetensors files, or a single .safetensors file."
        )
    config = read_json(file)
    if not isinstance(config, Mapping):
        raise BadFileError(f"{file} holds no JSON object, so it is not a model's config.json.")
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
