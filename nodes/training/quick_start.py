"""From a folder of pictures or clips to a LoRA in one node, made of the same parts as all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from musubi_core.data.picture_file import is_picture
from musubi_core.data.video_file import is_video
from musubi_core.errors import ConfigError
from musubi_core.training.options.loop import LoopOptions
from musubi_core.training.options.saving import SavingOptions

from ..caches.nodes import make_latents, make_texts
from ..dataset.sources import folder_input
from ..dataset.tables import fingerprint, table_of
from ..folders import media_folders, media_path, not_found
from ..inputs import inputs_of
from ..models.training_model import model_from, model_inputs
from ..schema import aliases, schema, validator
from ..values import Cached, Dataset, Settings, TrainingModel
from ..work import work
from . import lora_folder
from .setup import check_own, resume_input, train_config
from .train import COMMANDS, run_training, trained_outputs

NODE = "Quick Start"
RANK = 16  # of the adapters: enough for a person or a style, and small files
CLIPS = [1, 17, 33]  # frames: a still, one second, two seconds at 16 frames per second


def dataset_of(given: Mapping[str, Any]) -> Dataset:
    """The pictures and the videos of the folder, each as a dataset of its own. Raises ConfigError."""
    name = str(given.get("folder") or "")
    folder = media_path(name, where=f"{NODE}: folder")
    if not folder.is_dir():
        raise not_found(name, media_folders(), where=f"{NODE}: folder")
    side = int(given.get("resolution") or 768)
    settings = {"resolution": f"{side} {side}", "enable_bucket": True, "bucket_no_upscale": True}
    files = sorted(folder.iterdir())
    tables = []
    if any(map(is_picture, files)):
        tables.append(table_of(settings, {"image_directory": name}, where=NODE))
    if any(map(is_video, files)):
        clips = {**settings, "target_frames": " ".join(map(str, CLIPS))}
        # beside the caches of pictures, which may come from the same folder
        clips["cache_directory"] = f"{folder.name}-clips" if tables else ""
        tables.append(table_of(clips, {"video_directory": name}, where=NODE))
    if not tables:
        raise ConfigError(f"{NODE}: {folder} has no pictures and no videos. Put some there, with captions.")
    return Dataset(tables=tuple(tables))


def settings_of(model: TrainingModel, budget: float) -> dict[str, Settings]:
    """What suits most data: rank, noise levels as the model will see them, and gradient checkpointing."""
    sampling = model.spec.sampling_with(model.train_options)
    if sampling.shift_for is not None:
        levels: dict[str, Any] = {"timestep_sampling": "flux_shift"}
    else:
        levels = {"timestep_sampling": "shift", "discrete_flow_shift": sampling.shift}
    memory: dict[str, Any] = {"gradient_checkpointing": True, "vram_limit": budget or None}
    return {
        "network": Settings(values={"network_dim": RANK, "network_alpha": float(RANK)}),
        "timesteps": Settings(values=levels),
        "memory": Settings(values=memory),
    }


def check(given: dict[str, Any]) -> None:
    """Everything that can be known before anything runs."""
    check_own(given)
    dataset_of(given)
    model_from(given)


class QuickStart(io.ComfyNode):
    """The shortest way to a first LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiQuickStart",
            display_name="Quick Start: Train LoRA",
            category="Musubi",
            description="A folder of pictures or clips with captions goes in, a LoRA comes out. Caches are "
            "made, and settings are chosen so that the run fits the memory. Cancel saves everything.",
            search_aliases=aliases("lora training", "easy", "beginner", "first lora", "finetune"),
            is_output_node=True,
            inputs=[
                folder_input("pictures or videos"),
                *model_inputs(),
                *inputs_of(SavingOptions, only=("output_name",)),
                io.Float.Input(
                    "memory_budget",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="GPU memory in GB that the training may take. 0: all that the card has.",
                ),
                *inputs_of(LoopOptions, only=("max_train_steps",)),
                io.Int.Input(
                    "resolution",
                    default=768,
                    min=64,
                    max=4096,
                    step=16,
                    optional=True,
                    tooltip="Pictures are brought to the area of a square of this side, in their own shape; "
                    "small ones are not enlarged. Less is faster and needs less memory.",
                ),
                *inputs_of(LoopOptions, only=("seed",)),
                lora_folder.lora_folder_input(),
                resume_input(),
            ],
            outputs=trained_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(check)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return fingerprint(dataset_of, given)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        from musubi_core.training.plan.planning import fitted

        dataset, model = dataset_of(given), model_from(given)
        groups = settings_of(model, float(given.get("memory_budget") or 0))
        folder = lora_folder.folders()[str(given.get("lora_folder") or lora_folder.OUTPUT)]
        with work(cls, str(given["output_name"]), COMMANDS) as job:
            for make in (make_latents, make_texts):
                make(dataset, model, {}, job.emit, job.should_stop)
                job.raise_if_cancelled()
            cached = Cached(dataset=dataset, model=model)
            config = train_config(model, cached, cached, {**given, **groups}, where=NODE)
            return run_training(fitted(config, emit=job.emit), folder, job)
