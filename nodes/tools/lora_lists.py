"""Several LoRA files at once: chosen one by one, or all that a run has saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from musubi_core.errors import ConfigError

from ..files import LORAS
from ..folders import run_folder
from ..inference.file_state import state_of
from ..schema import aliases, schema, validator

CATEGORY = "Musubi/LoRA Tools"
LorasType = io.Custom("MUSUBI_LORAS")
# What a run calls its files, see training.outputs.
WHEN = {
    "saved by step": r"-step\d{8}",
    "saved by epoch": r"-\d{6}",
    "every save": r"(-step\d{8}|-\d{6}|)",
}
AVERAGE = r"-ema[\d.]+(e-?\d+)?"


@dataclass(frozen=True, slots=True)
class NamedLora:
    """A LoRA file and its strength."""

    path: Path
    strength: float = 1.0


def lora_input(name: str = "lora_name", *, tooltip: str) -> Any:
    """A LoRA of ComfyUI's list."""
    return io.Combo.Input(name, options=LORAS.names() or ["(no file in loras)"], tooltip=tooltip)


def check_lora(given: dict[str, Any]) -> None:
    """Raises ConfigError when the list does not have the file (any longer)."""
    if given.get("lora_name") is not None:
        LORAS.path(str(given["lora_name"]), "lora_name")


def runs() -> list[str]:
    """Names of the runs that have saved a LoRA, newest first."""
    root = run_folder("")
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    found = [path for path in folders if any(path.glob("*.safetensors"))]
    return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def saved_by(run: str, when: str, *, network: str = "", averages: bool = False) -> tuple[Path, ...]:
    """The LoRA files of a run by name. Raises ConfigError when there are none.

    network: of a pair of LoRAs, which one. averages: the running averages instead of the LoRAs themselves.
    """
    if run not in runs():
        raise ConfigError(f"There is no run {run!r} with saved LoRAs. Known: {', '.join(runs()) or 'none'}.")
    middle = re.escape(f"-{network}" if network else "")
    pattern = re.compile(f"{re.escape(run)}{WHEN[when]}{middle}{AVERAGE if averages else ''}.safetensors")
    found = sorted(path for path in run_folder(run).glob("*.safetensors") if pattern.fullmatch(path.name))
    if not found:
        what = "running average" if averages else "LoRA"
        raise ConfigError(
            f"The run {run} has no {what} {when}{f' for {network}' if network else ''}. Training saves them "
            "with the node Saving: save_every_n_steps or save_every_n_epochs; averages with ema_sigma_rel."
        )
    return tuple(found)


def _chosen(given: dict[str, Any]) -> tuple[Path, ...]:
    return saved_by(
        str(given["run"]),
        str(given["when"]),
        network=str(given.get("network") or "").strip(),
        averages=bool(given.get("averages")),
    )


class LoraList(io.ComfyNode):
    """One LoRA file by name; several are chained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiLoraList",
            display_name="LoRA List",
            category=CATEGORY,
            description="Names a LoRA file for the tools that take several. Chain these nodes for more.",
            search_aliases=aliases("lora stack", "several loras", "merge"),
            inputs=[
                lora_input(tooltip="A file of the folder loras."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="How strongly it counts when LoRAs are merged. Averages do not ask for it.",
                ),
                LorasType.Input("others", optional=True, tooltip="From another LoRA List; these come first."),
            ],
            outputs=[LorasType.Output("loras", tooltip="For Average, Merge and other LoRA tools.")],
        )

    validate_inputs = validator(check_lora, "lora_name")

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        return state_of(LORAS.path(lora_name, "lora_name"))

    @classmethod
    def execute(
        cls, lora_name: str, strength: float = 1.0, others: Sequence[NamedLora] | None = None
    ) -> io.NodeOutput:
        lora = NamedLora(LORAS.path(lora_name, "lora_name"), strength)
        return io.NodeOutput((*(others or ()), lora))


class RunCheckpoints(io.ComfyNode):
    """What a run saved on its way."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MusubiRunCheckpoints",
            display_name="Checkpoints of a Run",
            category=CATEGORY,
            description="The LoRA files that Train LoRA saved on its way, for averaging them afterwards.",
            search_aliases=aliases("lora checkpoints", "ema", "epochs"),
            inputs=[
                io.Combo.Input(
                    "run", options=runs() or ["(no run has saved a LoRA)"], tooltip="The name of the run."
                ),
                io.Combo.Input("when", options=list(WHEN), default="every save", tooltip="Which of them."),
                io.Boolean.Input(
                    "averages",
                    default=False,
                    optional=True,
                    tooltip="Its running averages (ema_sigma_rel in Saving) instead, for Average LoRAs with "
                    "weighting stored.",
                    extra_dict={"advanced": True},
                ),
                io.String.Input(
                    "network",
                    default="",
                    optional=True,
                    tooltip="Of a model with two networks that were trained as a pair: high_noise or "
                    "low_noise. Else empty.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[
                LorasType.Output("loras", tooltip="Sorted by name."),
                io.String.Output("names", tooltip="The file names, one per line."),
            ],
        )

    validate_inputs = validator(_chosen, "run", "when", "averages", "network")

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> Any:
        return [state_of(path) for path in _chosen(given)]

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        found = _chosen(given)
        return io.NodeOutput(tuple(NamedLora(path) for path in found), "\n".join(path.name for path in found))
