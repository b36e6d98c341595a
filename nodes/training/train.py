"""Train LoRA, and Plan Training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from musubi_core.cli.work import check_lora
from musubi_core.events import Event
from musubi_core.training.config import TrainConfig

from ..running import Command, Job
from ..schema import aliases, schema, validator
from ..shown import shown
from ..values import Cached, Settings, TrainingModel
from ..work import work
from . import lora_folder
from .groups import CATEGORY
from .results import Previews, loss_plot, losses, metrics
from .setup import check_own, resume_input, run_inputs, train_config

COMMANDS: tuple[Command, ...] = ("save", "stop")


def trained_outputs() -> list[Any]:
    """What a training gives to a graph."""
    return [
        io.LoraModel.Output("lora", tooltip="The trained LoRA, for Load LoRA Model and Save LoRA."),
        io.LoraModel.Output(
            "lora_high_noise",
            tooltip="The second LoRA of a model with two networks that are trained as a pair.",
        ),
        io.String.Output("lora_file", tooltip="The name of the LoRA in Load LoRA's list."),
        io.LossMap.Output("loss_map", tooltip="The loss of every step, for Plot Loss Graph."),
        io.Image.Output("loss_plot", tooltip="The loss over the steps: raw, smoothed, validation."),
        io.Image.Output("samples", tooltip="Sample pictures made on the way, the newest last."),
    ]


def run_training(config: TrainConfig, folder: Path, job: Job) -> io.NodeOutput:
    """Train inside `work`, and put the LoRA into one of ComfyUI's folders."""
    from musubi_core.training.run import train

    previews = Previews()

    def listen(event: Event) -> None:
        previews(event)
        job.emit(event)

    result = train(config, listen, job.should_stop, requests=job.requests)
    for path in result.loras:
        check_lora(path)
    files = lora_folder.offer(result.loras, folder)
    rows = metrics(result.metrics)
    lines = [f"{result.step} of {result.total} steps" + (", stopped." if result.stopped else ".")]
    lines += [f"LoRA: {file}" for file in files]
    return trained("\n".join(lines), files, rows, config.saving.output_name, previews.batch())


def trained(
    text: str, files: tuple[Path, ...], rows: list[dict[str, Any]], title: str, samples: Tensor | None
) -> io.NodeOutput:
    """The outputs of a training. What there is none of blocks the nodes behind it."""
    loras = [lora_folder.lora_model(file) for file in files]
    plot = loss_plot(rows, title)
    return shown(
        text,
        plot,
        loras[0] if loras else None,
        loras[1] if len(loras) > 1 else None,
        files[0].name if files else None,
        {"loss": losses(rows)},
        plot,
        samples,
    )


class TrainLora(io.ComfyNode):
    """From cached data to a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiTrainLora",
            display_name="Train LoRA (Musubi)",
            category=CATEGORY,
            description="Trains a LoRA in this ComfyUI. Cancel saves everything; queued again, the run goes "
            "on exactly where it ended.",
            search_aliases=aliases("lora training", "finetune", "fine-tune", "kohya", "trainer"),
            is_output_node=True,
            inputs=[*run_inputs(), lora_folder.lora_folder_input(), resume_input(), _run_input()],
            outputs=trained_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(check_own, "output_name")

    @classmethod
    def execute(
        cls,
        model: TrainingModel,
        latents: Cached,
        texts: Cached,
        run: int = 0,
        **given: Any,
    ) -> io.NodeOutput:
        name = str(given["output_name"])
        folder = lora_folder.folders()[str(given.pop("lora_folder", lora_folder.OUTPUT))]
        drawing: Settings | None = given.get("sampling")
        commands = COMMANDS if drawing is None or not drawing.values else (*COMMANDS, "sample")
        with work(cls, name, commands) as job:
            config = train_config(model, latents, texts, given, where="Train LoRA")
            return run_training(config, folder, job)


class PlanTraining(io.ComfyNode):
    """What a run needs, before it begins."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiPlanTraining",
            display_name="Plan Training",
            category=CATEGORY,
            description="Says how much memory and disk a run needs and how many steps it has, and what would "
            "make it fit. Loads no weights.",
            search_aliases=aliases("dry run", "estimate vram", "memory plan"),
            is_output_node=True,
            inputs=run_inputs(),
            outputs=[io.String.Output("plan", tooltip="The plan as text.")],
            hidden=[io.Hidden.unique_id],
        )

    validate_inputs = validator(check_own, "output_name")

    @classmethod
    def execute(cls, model: TrainingModel, latents: Cached, texts: Cached, **given: Any) -> io.NodeOutput:
        from musubi_core.training.plan.planning import plan_run

        with work(cls, "Plan", frees=False) as job:
            config = train_config(model, latents, texts, given, where="Plan Training")
            text = plan_run(config, emit=job.emit).text()
        return shown(text, None, text)


def _run_input() -> Any:
    return io.Int.Input(
        "run",
        default=0,
        min=0,
        max=2**31 - 1,
        optional=True,
        tooltip="Change it to train again with the same settings: ComfyUI remembers this node's result "
        "otherwise.",
        extra_dict={"advanced": True},
    )
