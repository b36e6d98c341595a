"""What a dataset comes to, before anything is cached."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from musubi_core.data.dataset import read_datasets
from musubi_core.data.preview import PreviewRequest, preview
from musubi_core.data.report import report_text
from musubi_core.data.scan import Scan, scan
from musubi_core.events import Event, Preview
from musubi_core.models.registry import SPECS, architecture

from ..folders import temp_folder
from ..pictures import as_batch
from ..schema import aliases, schema
from ..shown import shown
from ..values import Dataset, DatasetType, ModelType, TrainingModel
from .sources import CATEGORY


class DatasetReport(io.ComfyNode):
    """Every file with what it is used for, or why it is not; buckets; pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiDatasetReport",
            display_name="Dataset Report",
            category=CATEGORY,
            description="Says of every file what it is used for, or why it is not; shows the bucket table "
            "and pictures as the model will see them. Caches nothing.",
            search_aliases=aliases("bucket table", "check dataset", "preview dataset"),
            is_output_node=True,
            inputs=[
                DatasetType.Input("dataset", tooltip="What to look at."),
                io.Combo.Input(
                    "architecture",
                    options=list(SPECS),
                    default=next(iter(SPECS)),
                    tooltip="Model family whose sizes and frame rates count. Not used when a model is "
                    "connected.",
                ),
                io.Int.Input(
                    "thumbnails",
                    default=16,
                    min=0,
                    max=256,
                    tooltip="How many items of each dataset are shown. 0: none, which is quickest.",
                ),
                ModelType.Input("model", optional=True, tooltip="The model that will be trained."),
            ],
            outputs=[
                io.String.Output("report", tooltip="The report as text."),
                io.Image.Output("pictures", tooltip="Contact sheets with captions and sizes."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        architecture: str,
        thumbnails: int,
        model: TrainingModel | None = None,
    ) -> io.NodeOutput:
        scans = scans_of(dataset, architecture, model)
        text = report_text(scans)
        sheets, failures = _sheets(scans, thumbnails)
        text = "\n".join([text, *failures])
        images = None if not sheets else as_batch(sheets)
        return shown(text, images, text, images)


def scans_of(dataset: Dataset, name: str, model: TrainingModel | None) -> list[Scan]:
    """What the datasets come to for the model, or for the architecture of that name."""
    spec = architecture(name) if model is None else model.spec
    shape = spec.latent_with(None if model is None else model.latent_options)
    return [scan(one, shape) for one in read_datasets(dataset.file())]


def _sheets(scans: list[Scan], count: int) -> tuple[list[Any], list[str]]:
    """Contact sheets, and what could not be shown."""
    sheets: list[Any] = []

    def keep(event: Event) -> None:
        if isinstance(event, Preview):
            sheets.extend(event.frames)

    if not count:
        return [], []
    request = PreviewRequest(mode="image", folder=temp_folder() / "sheets", per_dataset=count)
    return sheets, preview(scans, request, keep)
