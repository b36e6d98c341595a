"""The state of a run on disk: a folder of state.json and tensors.safetensors, from which it goes on exactly.

Random numbers and the data order follow from the seed and the step, so the step is all there is to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.files.leftovers import find_folder
from musubi_core.files.replace import check_space, replace_folder, write_json
from musubi_core.files.tensors import read_tensors, write_tensors
from musubi_core.training.packing import pack, unpack

FORMAT = 1
RECORD, TENSORS = "state.json", "tensors.safetensors"
NETWORK = "network/"  # before the names of adapter weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that decides how a run goes on.

    step: finished optimizer steps. together: batches per step. total: steps of the whole run. options: what
    shapes the trajectory, as JSON values. identities: hashes of the dataset and the base model. losses: the
    window of loss/average. refused: steps in a row that made no update. saved: see `outputs.Saved`. kept:
    False when it may be deleted as soon as there is a newer one.
    """

    output_name: str
    step: int
    epoch: int
    position: int  # batches of the epoch that are done
    seed: int
    session_id: int
    started_at: float
    together: int
    total: int
    kept: bool
    options: Mapping[str, Any]
    identities: Mapping[str, str]
    losses: tuple[float, ...] = ()
    refused: int = 0
    loss_scale: tuple[float, int] | None = None
    saved: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    optimizer: Any = None
    schedule: Any = None
    averages: Any = None  # see running_averages
    network: Mapping[str, Tensor] = field(default_factory=dict)


def write_state(path: Path, state: RunState) -> None:
    """Write the folder, whole or not at all. Raises BadFileError; on a full disk before it begins."""
    tensors = {NETWORK + name: tensor.detach() for name, tensor in state.network.items()}
    record: dict[str, Any] = {"format": FORMAT}
    for one in fields(state):
        if one.name != "network":
            record[one.name] = pack(getattr(state, one.name), tensors, one.name)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    check_space(path.parent, needed, what=f"the run state {path.name}")
    with replace_folder(path) as folder:
        write_tensors(folder / TENSORS, tensors)
        write_json(folder / RECORD, record)


def read_state(path: Path) -> RunState:
    """The state in a folder, tensors on the CPU. Raises BadFileError when it is none, or incomplete."""
    record = read_record(path)
    tensors = read_tensors(path / TENSORS)
    try:
        values = {
            one.name: unpack(record[one.name], tensors) for one in fields(RunState) if one.name != "network"
        }
    except (KeyError, TypeError) as error:
        raise BadFileError(
            f"{path / RECORD} lacks {error}; it is no state of this program, or damaged."
        ) from None
    network = {name.removeprefix(NETWORK): one for name, one in tensors.items() if name.startswith(NETWORK)}
    return RunState(**values, network=network)


def read_record(path: Path) -> dict[str, Any]:
    """state.json alone. Raises BadFileError."""
    folder = find_folder(path)
    file = path / RECORD
    if folder is None or not file.is_file():
        raise BadFileError(
            f"{path} is no run state: it has no {RECORD}. Give a folder whose name ends in -state."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadFileError(f"{file} cannot be read: {error}. Resume from an older state.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise BadFileError(
            f"{file} has format {found!r}; this version reads {FORMAT}. Use the version that wrote it."
        )
    return record


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Put a packed-and-unpacked `state_dict` back, every tensor in the number type it was saved in.

    torch itself would convert state to the type of the parameter.
    """
    optimizer.load_state_dict(saved)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, values in saved["state"].items():
        held = optimizer.state[parameters[index]]
        for key, value in values.items():
            if (
                isinstance(value, Tensor)
                and isinstance(held.get(key), Tensor)
                and held[key].dtype != value.dtype
            ):
                held[key] = value.to(held[key].device)
