"""A dataset from IMAGE and text of the graph."""

from __future__ import annotations

import hashlib
import io as bytes_io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from musubi_core.data.dataset import GENERAL_KEYS
from musubi_core.data.dataset_config import DatasetConfig
from musubi_core.errors import ConfigError
from musubi_core.files.replace import replace_file, write_text
from musubi_core.training.options.saving import SavingOptions

from ..folders import RUNS
from ..inputs import inputs_of
from ..pictures import as_picture
from ..schema import aliases, schema
from ..values import Dataset, DatasetType
from .sources import CATEGORY
from .tables import table_of

NODE = "Dataset from Images"
KEYS = GENERAL_KEYS - {"caption_extension"}


class ImagesDataset(io.ComfyNode):
    """Pictures that other nodes made or loaded, each with a caption."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiImagesDataset",
            display_name=NODE,
            category=CATEGORY,
            description="Pictures that other nodes loaded or made, with captions. They are kept below the "
            "output folder, so that training can go on another day.",
            search_aliases=aliases("image list", "captions", "training data"),
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A list or a batch of pictures."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One caption for each picture, as a list; or one caption for all of them.",
                ),
                io.String.Input("name", default="my_images", tooltip="Name of the folder that keeps them."),
                io.Image.Input(
                    "control_images",
                    optional=True,
                    tooltip="For editing models: one control picture for each picture, in the same order.",
                ),
                *inputs_of(DatasetConfig, only=KEYS),
            ],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        captions: list[str],
        name: list[str],
        control_images: list[Tensor] | None = None,
        **given: list[Any],
    ) -> io.NodeOutput:
        lines = _written(images, captions, control_images, _folder(name[0]))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path = _folder(name[0]) / f"{_mark(text.encode())}.jsonl"
        write_text(path, text)
        inputs = {key: values[0] for key, values in given.items()}
        return io.NodeOutput(Dataset(tables=(table_of(inputs, {"image_jsonl_file": str(path)}, where=NODE),)))


def _folder(name: str) -> Path:
    folder = Path(folder_paths.get_output_directory()) / f"{RUNS}_datasets"
    SavingOptions(output_dir=folder, output_name=name).check()  # a plain name, so below this folder
    return folder / name


def _written(
    images: Sequence[Tensor], captions: Sequence[str], controls: Sequence[Tensor] | None, folder: Path
) -> list[Mapping[str, str]]:
    """One JSONL line for each picture, the files of which are named after their content."""
    pictures = [picture for batch in images for picture in batch]
    texts = list(captions) * len(pictures) if len(captions) == 1 else list(captions)
    others = [picture for batch in controls or () for picture in batch]
    if len(texts) != len(pictures):
        raise ConfigError(
            f"{NODE}: {len(pictures)} pictures came with {len(texts)} captions. Give one caption for each, "
            "or a single one for all."
        )
    if others and len(others) != len(pictures):
        raise ConfigError(
            f"{NODE}: {len(pictures)} pictures came with {len(others)} control_images. Give one for each."
        )
    lines: list[Mapping[str, str]] = []
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        line = {"image_path": _kept(picture, folder), "caption": text}
        lines.append(line | ({"control_path": _kept(others[number], folder)} if others else {}))
    return lines


def _kept(image: Tensor, folder: Path) -> str:
    """The path of the picture as a PNG file, written if it is not there."""
    content = bytes_io.BytesIO()
    as_picture(image).save(content, format="PNG", compress_level=4)
    path = folder / f"{_mark(content.getvalue())}.png"
    if not path.is_file():
        with replace_file(path) as file:
            file.write(content.getvalue())
    return str(path)


def _mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
