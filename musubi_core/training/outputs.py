"""The files of a run: their names, and which old ones make room for new ones."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from musubi_core.errors import BadFileError
from musubi_core.events import FileWritten, Listener, Note, Warned
from musubi_core.files.leftovers import clear_leftovers
from musubi_core.files.tensors import write_tensors
from musubi_core.training.options.saving import SavingOptions
from musubi_core.training.state import RunState, read_record, write_state

LORA = ".safetensors"
STATE = "-state"


@dataclass(slots=True, kw_only=True)
class Saved:
    """Names of what this run wrote and may delete again, oldest first. Nothing else is ever deleted."""

    steps: list[str] = field(default_factory=list)
    epochs: list[str] = field(default_factory=list)
    step_states: list[str] = field(default_factory=list)
    epoch_states: list[str] = field(default_factory=list)
    spare_states: list[str] = field(default_factory=list)  # written only to restart from

    def record(self) -> dict[str, Any]:
        return asdict(self)


def step_name(name: str, step: int) -> str:
    return f"{name}-step{step:08d}"


def epoch_name(name: str, epoch: int) -> str:
    return f"{name}-{epoch:06d}"


def average_name(base: str, width: float) -> str:
    """The running average beside a LoRA."""
    return f"{base}-ema{width:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Writes into one folder and tells the listener. loras: files of one save."""

    options: SavingOptions
    emit: Listener
    saved: Saved
    loras: int = 1

    @property
    def folder(self) -> Path:
        return self.options.output_dir

    def write_lora(self, base: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """`base` is the file name without its ending."""
        path = self.folder / f"{base}{LORA}"
        write_tensors(path, tensors, metadata, sshs_hashes=True)
        self.emit(FileWritten(path=path, what="LoRA"))
        return path

    def write_state(self, base: str, state: RunState) -> Path:
        """Write a state; older ones that only served to restart from are then deleted."""
        path = self.folder / f"{base}{STATE}"
        write_state(path, state)
        self.emit(FileWritten(path=path, what="run state"))
        spare = self.saved.spare_states
        older = [name for name in spare if name != path.name]
        self._delete(older)
        spare[:] = [name for name in spare if name not in older]
        return path

    def make_room(self) -> None:
        """Delete what exceeds save_last_n_*."""
        options, saved = self.options, self.saved
        steps_state = options.save_last_n_steps_state or options.save_last_n_steps
        epochs_state = options.save_last_n_epochs_state or options.save_last_n_epochs
        for names, keep, each in (
            (saved.steps, options.save_last_n_steps, self.loras),
            (saved.epochs, options.save_last_n_epochs, self.loras),
            (saved.step_states, steps_state, 1),
            (saved.epoch_states, epochs_state, 1),
        ):
            if keep:
                self._delete(names[: -keep * each])
                names[:] = names[-keep * each :]

    def _delete(self, names: list[str]) -> None:
        for name in names:
            path = self.folder / name
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:  # a file that is open elsewhere must not end a run
                self.emit(Warned(text=f"{path} should make room but cannot be deleted: {error.strerror}."))


def find_state(options: SavingOptions, emit: Listener) -> Path | None:
    """The state that --resume means; None for a fresh start. Raises BadFileError for any other folder."""
    if options.resume is None:
        return None
    if options.resume != "auto":
        path = Path(options.resume)
        read_record(path)
        return path
    folder, name = options.output_dir, options.output_name
    if folder.is_dir():
        clear_leftovers(folder)  # puts back a state that was being replaced when its writer was killed
    found: list[tuple[int, str, Path]] = []
    pattern = re.compile(re.escape(name) + r"(-\d{6}|-step\d{8})?" + re.escape(STATE))
    for path in folder.glob(f"*{STATE}") if folder.is_dir() else ():
        if not pattern.fullmatch(path.name):
            continue
        try:
            record = read_record(path)
        except BadFileError as error:
            emit(Warned(text=f"Not used to resume: {error}"))
            continue
        if record.get("output_name") == name:
            found.append((int(record["step"]), path.name, path))
    if not found:
        emit(
            Note(text=f"--resume auto: no state of {name} in {folder}, so the run starts from the beginning.")
        )
        return None
    return max(found)[2]
