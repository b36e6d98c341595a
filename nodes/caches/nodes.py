"""Latents and encoded captions on disk; what is there and fresh is not made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from musubi_core.cli.work import Written, check_caches
from musubi_core.events import Listener, ShouldStop
from musubi_core.training.cache_config import CacheLatentsConfig, CacheTextConfig
from musubi_core.training.cache_report import CacheReport

from ..inputs import config_from, inputs_of
from ..schema import aliases, schema
from ..shown import shown
from ..values import Cached, Dataset, DatasetType, LatentsType, ModelType, TextsType, TrainingModel
from ..work import device, work

CATEGORY = "Musubi/Caches"
LATENT_KEYS = (
    *("vae_dtype", "batch_size", "num_workers", "skip_existing", "keep_cache"),
    "disable_cudnn_backend",
)
TEXT_KEYS = ("batch_size", "skip_existing", "keep_cache")


def refresh_input() -> Any:
    """How a node that ComfyUI thinks is done is made to look again."""
    return io.Int.Input(
        "refresh",
        default=0,
        min=0,
        max=2**31 - 1,
        optional=True,
        tooltip="Change it to look at the files again, e.g. after you deleted caches by hand. ComfyUI "
        "remembers this node's result otherwise.",
        extra_dict={"advanced": True},
    )


def make_latents(
    dataset: Dataset,
    model: TrainingModel,
    given: Mapping[str, Any],
    listener: Listener,
    should_stop: ShouldStop,
) -> CacheReport:
    """The job behind Cache Latents. given: its own inputs by name."""
    from musubi_core.training.cache_jobs import cache_latents

    fixed = {
        "dataset_config": dataset.file(),
        "architecture": model.architecture,
        "vae": model.vae,
        "device": device(),
    }
    config = config_from(CacheLatentsConfig, given, where="Cache Latents", fixed=fixed)
    return _checked(cache_latents, config, model.latent_options, listener, should_stop)


def make_texts(
    dataset: Dataset,
    model: TrainingModel,
    given: Mapping[str, Any],
    listener: Listener,
    should_stop: ShouldStop,
) -> CacheReport:
    """The job behind Cache Text. given: its own inputs by name."""
    from musubi_core.training.cache_jobs import cache_text

    fixed = {"dataset_config": dataset.file(), "architecture": model.architecture, "device": device()}
    config = config_from(CacheTextConfig, given, where="Cache Text", fixed=fixed)
    return _checked(cache_text, config, model.text_options, listener, should_stop)


def _checked(job: Any, config: Any, options: Any, listener: Listener, should_stop: ShouldStop) -> CacheReport:
    """Run the job; raises BadFileError when a file could not be cached, as the command line does."""
    written = Written(listener)
    report: CacheReport = job(dataclasses.replace(config, arch_options=options), written, should_stop)
    if not report.stopped:
        check_caches(report, written.paths)
    return report


def summary(report: CacheReport) -> str:
    """What the node shows."""
    lines = [f"{report.written} made, {report.reused + report.accepted} were there already."]
    if report.deleted:
        lines.append(f"{len(report.deleted)} deleted, because their media left the dataset.")
    lines += [f"{skip.path.name}: {skip.reason}" for skip in report.skipped]
    return "\n".join(lines)


def _inputs(cls: type, keys: tuple[str, ...]) -> list[Any]:
    return [
        DatasetType.Input("dataset", tooltip="What to encode."),
        ModelType.Input("model", tooltip="The model that will be trained; it names its encoders."),
        *inputs_of(cls, only=keys),
        refresh_input(),
    ]


class CacheLatents(io.ComfyNode):
    """Pictures and clips as latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiCacheLatents",
            display_name="Cache Latents",
            category=CATEGORY,
            description="Encodes the pictures and clips of a dataset with the VAE, once. What is there and "
            "unchanged is kept.",
            search_aliases=aliases("encode dataset", "vae encode", "precompute"),
            # Not an output node: ComfyUI would run it in a graph whose training is refused.
            has_intermediate_output=True,
            inputs=_inputs(CacheLatentsConfig, LATENT_KEYS),
            outputs=[
                LatentsType.Output("latents", tooltip="To Train LoRA."),
                io.String.Output("report", tooltip="How many were made and kept, and what was left out."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset: Dataset, model: TrainingModel, refresh: int = 0, **given: Any) -> io.NodeOutput:
        with work(cls, "Cache Latents") as job:
            report = make_latents(dataset, model, given, job.emit, job.should_stop)
        text = summary(report)
        return shown(text, None, Cached(dataset=dataset, model=model), text)


class CacheText(io.ComfyNode):
    """Captions as text encoder outputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiCacheText",
            display_name="Cache Text",
            category=CATEGORY,
            description="Encodes the captions of a dataset with the text encoders, once. A changed caption "
            "is encoded again, the others are kept.",
            search_aliases=aliases("encode captions", "text encoder", "precompute"),
            # Not an output node: ComfyUI would run it in a graph whose training is refused.
            has_intermediate_output=True,
            inputs=_inputs(CacheTextConfig, TEXT_KEYS),
            outputs=[
                TextsType.Output("texts", tooltip="To Train LoRA."),
                io.String.Output("report", tooltip="How many were made and kept, and what was left out."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset: Dataset, model: TrainingModel, refresh: int = 0, **given: Any) -> io.NodeOutput:
        with work(cls, "Cache Text") as job:
            report = make_texts(dataset, model, given, job.emit, job.should_stop)
        text = summary(report)
        return shown(text, None, Cached(dataset=dataset, model=model), text)
