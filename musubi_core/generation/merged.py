"""`--save_merged_model`: the networks with their LoRAs inside, as files like those they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.errors import BadFileError, ConfigError, Stopped
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made
from musubi_core.generation.loading import load_with_merged, watcher
from musubi_core.generation.opening import OpenedModel, lora_facts
from musubi_core.models.spec import Expert

CPU = torch.device("cpu")


def save_merged(opened: OpenedModel, path: Path, emit: Listener, should_stop: ShouldStop) -> tuple[Path, ...]:
    """Write each network that has LoRAs, in the precision it would draw with, and return the files.

    A picture drawn with such a file is the very picture that the LoRAs would have given. With several
    networks, the name of the network stands behind the name of the file.
    """
    jobs = [
        (side, expert, path.with_stem(f"{path.stem}_{expert.name}") if expert.name else path)
        for side, expert in enumerate(opened.experts)
        if opened.loras[side]
    ]
    inputs = {expert.path.resolve() for expert in opened.experts}
    inputs |= {lora.path.resolve() for own in opened.loras for lora in own}
    for _, _, target in jobs:
        if target.resolve() in inputs:
            raise ConfigError(f"{target} is one of the files that are merged. Give another name.")
    written = []
    for side, expert, target in jobs:
        if should_stop() or not _save(opened, side, expert, target, emit, should_stop):
            break
        written.append(target)
    return tuple(written)


def _save(
    opened: OpenedModel, side: int, expert: Expert, path: Path, emit: Listener, should_stop: ShouldStop
) -> bool:
    watch = watcher(expert, emit, should_stop)
    request = replace(opened.load_request(expert, CPU), placement=None, watch=watch)
    loras = opened.loras[side]
    model = load_with_merged(opened.spec, request, loras, emit, name=expert.name or "model")
    state: Mapping[str, Tensor] = model.state_dict()
    infos = {
        name: TensorInfo(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in state.items()
    }
    done = 0

    def make(name: str) -> Tensor:
        nonlocal done
        if should_stop():
            raise Stopped
        tensor = state[name]
        if not torch.isfinite(tensor).all():
            raise BadFileError(
                f"{name} would hold NaN or infinity after the merge. Use another multiplier or "
                "--dit_dtype, or look for the damaged file. Nothing was written."
            )
        done += 1
        emit(Progress(stage="save", done=done, total=len(infos), text=name))
        return tensor.contiguous()

    named = ", ".join(f"{one['file']} {one['multiplier']:g}" for one in lora_facts([loras]))
    try:
        write_made(path, infos, make, {"format": "pt", "musubi_core.merged": named})
    except Stopped:
        return False
    emit(FileWritten(path=path, what="merged model"))
    emit(Note(text="Nothing is drawn with --save_merged_model; use the file as --dit."))
    return True
