"""Datasets from a folder, a list or a dataset file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.config import OptionInfo, options_of
from musubi_core.data.dataset import GENERAL_KEYS, IMAGE_KEYS, SHARED_KEYS, VIDEO_KEYS
from musubi_core.data.dataset_config import DatasetConfig

from ..folders import CACHES, media_files, media_folders, media_path, not_found
from ..inputs import Chooser, inputs_of, more
from ..schema import aliases, schema, validator
from ..values import Dataset, DatasetType, combined
from .tables import OWN_CACHES, SOURCES, fingerprint, table_of, tables_of_file

CATEGORY = "Musubi/Dataset"
EMPTY_LIST = "(nothing in ComfyUI's input folder)"
CHECKED = ("resolution", "control_directory", "cache_directory")  # texts that ComfyUI cannot check


class _FolderName:
    """A folder as text: below ComfyUI's input folder, or for caches below the cache folder."""

    def input(self, info: OptionInfo) -> Any:
        about = more(info)
        if info.name == "cache_directory":
            about["tooltip"] = (
                f"Folder for the caches, below ComfyUI's {CACHES} folder. Empty: one of its own for each "
                "media folder."
            )
            about["extra_dict"] = {"advanced": True}
        return io.String.Input(info.name, default="", **about)

    def value(self, text: str, info: OptionInfo) -> Any:
        raise TypeError(f"{info.name} is checked in `tables`")


_FOLDERS: dict[str, Chooser] = {
    info.name: _FolderName() for info in options_of(DatasetConfig) if info.type is Path
}


def dataset_inputs(kind: frozenset[str]) -> list[Any]:
    """Every key of a `[[datasets]]` table of this kind but its source."""
    names = (GENERAL_KEYS | SHARED_KEYS | kind) - set(SOURCES)
    return inputs_of(DatasetConfig, only=names, choosers=_FOLDERS)


def choice(name: str, options: list[str], tooltip: str) -> Any:
    """A list of folders or files; what was put there a moment ago is accepted too."""
    options = options or [EMPTY_LIST]
    return io.Combo.Input(name, options=options, default=options[0], tooltip=tooltip)


def folder_input(what: str) -> Any:
    """A folder of media."""
    tooltip = (
        f"Folder of {what} below ComfyUI's input folder, each with a caption beside it: cat.png and cat.txt."
    )
    return choice("folder", media_folders(), tooltip)


def _of_folder(key: str, node: str, given: Mapping[str, Any]) -> Dataset:
    folder = given.get("folder") or ""
    if not media_path(folder, where=f"{node}: folder").is_dir():
        raise not_found(folder, media_folders(), where=f"{node}: folder")
    inputs = {name: value for name, value in given.items() if name != "folder"}
    return Dataset(tables=(table_of(inputs, {key: folder}, where=node),))


def _of_pictures(given: Mapping[str, Any]) -> Dataset:
    return _of_folder("image_directory", "Image Folder Dataset", given)


def _of_videos(given: Mapping[str, Any]) -> Dataset:
    return _of_folder("video_directory", "Video Folder Dataset", given)


def _of_list(given: Mapping[str, Any]) -> Dataset:
    node, file = "JSONL Dataset", given.get("file") or ""
    if not media_path(file, where=f"{node}: file").is_file():
        raise not_found(file, media_files(".jsonl"), where=f"{node}: file")
    inputs = {name: value for name, value in given.items() if name not in ("file", "media")}
    kind = VIDEO_KEYS if given.get("media") == "videos" else IMAGE_KEYS
    inputs = {name: value for name, value in inputs.items() if name in GENERAL_KEYS | SHARED_KEYS | kind}
    key = "video_jsonl_file" if kind is VIDEO_KEYS else "image_jsonl_file"
    return Dataset(tables=(table_of(inputs, {key: file}, where=node),))


def _of_file(given: Mapping[str, Any]) -> Dataset:
    node, file = "Dataset File", given.get("file") or ""
    path = media_path(file, where=f"{node}: file")
    if not path.is_file():
        raise not_found(file, media_files(".toml", ".json"), where=f"{node}: file")
    return tables_of_file(path, caches=given.get("caches") or OWN_CACHES)


class ImageFolderDataset(io.ComfyNode):
    """Pictures of a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiImageFolderDataset",
            display_name="Image Folder Dataset",
            category=CATEGORY,
            description="Pictures of a folder with their captions, as data to train on.",
            search_aliases=aliases("load images", "training data", "dataset folder", "kohya"),
            inputs=[folder_input("pictures"), *dataset_inputs(IMAGE_KEYS)],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    validate_inputs = validator(_of_pictures, "folder", "control_resolution", *CHECKED)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return fingerprint(_of_pictures, given)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(_of_pictures(given))


class VideoFolderDataset(io.ComfyNode):
    """Clips of the videos of a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiVideoFolderDataset",
            display_name="Video Folder Dataset",
            category=CATEGORY,
            description="Clips cut from the videos of a folder with their captions, as data to train on.",
            search_aliases=aliases("load videos", "training data", "dataset folder", "clips"),
            inputs=[folder_input("videos"), *dataset_inputs(VIDEO_KEYS)],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    validate_inputs = validator(_of_videos, "folder", "target_frames", *CHECKED)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return fingerprint(_of_videos, given)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(_of_videos(given))


class JsonlDataset(io.ComfyNode):
    """Media that a list names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "A .jsonl file below ComfyUI's input folder; each line names a medium and its caption."
        kind = io.Combo.Input(
            "media", options=["pictures", "videos"], default="pictures", tooltip="What the lines name."
        )
        return schema(
            node_id="MusubiJsonlDataset",
            display_name="JSONL Dataset",
            category=CATEGORY,
            description="Pictures or videos that a JSONL file lists with their captions.",
            search_aliases=aliases("metadata", "caption list", "training data"),
            inputs=[
                choice("file", media_files(".jsonl"), tooltip),
                kind,
                *dataset_inputs((IMAGE_KEYS | VIDEO_KEYS) - {"control_directory"}),
            ],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    validate_inputs = validator(_of_list, "file", "media", "target_frames", "control_resolution", *CHECKED)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return fingerprint(_of_list, given)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(_of_list(given))


class FileDataset(io.ComfyNode):
    """Datasets of a musubi-tuner file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "A dataset file of musubi-tuner (.toml or .json) below ComfyUI's input folder."
        caches = io.Combo.Input(
            "caches",
            options=[OWN_CACHES, "where the file says"],
            default=OWN_CACHES,
            optional=True,
            tooltip="Where caches go. Folders that the file names are used only if this ComfyUI may write "
            "there.",
        )
        return schema(
            node_id="MusubiDatasetFile",
            display_name="Dataset File",
            category=CATEGORY,
            description="All datasets of a dataset file, with every key that musubi-tuner knows.",
            search_aliases=aliases("dataset config", "toml", "musubi-tuner"),
            inputs=[choice("file", media_files(".toml", ".json"), tooltip), caches],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    validate_inputs = validator(_of_file, "file", "caches")

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return fingerprint(_of_file, given)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(_of_file(given))


class CombineDatasets(io.ComfyNode):
    """Several datasets as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        one = DatasetType.Input("dataset", tooltip="One of the datasets; connect as many as you like.")
        return schema(
            node_id="MusubiCombineDatasets",
            display_name="Combine Datasets",
            category=CATEGORY,
            description="Train on several datasets at once, each with its own resolution and repeats.",
            search_aliases=aliases("merge datasets", "join", "multiple datasets"),
            inputs=[
                io.Autogrow.Input(
                    "datasets",
                    template=io.Autogrow.TemplatePrefix(one, prefix="dataset", min=1, max=50),
                    tooltip="The datasets, one socket each; another one appears when the last is taken.",
                )
            ],
            outputs=[DatasetType.Output("dataset", tooltip="To Cache Latents and Cache Text.")],
        )

    @classmethod
    def execute(cls, datasets: Mapping[str, Dataset] | None = None) -> io.NodeOutput:
        return io.NodeOutput(combined([one for one in (datasets or {}).values() if one is not None]))
