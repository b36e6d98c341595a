"""LoRAs into a model: tensor by tensor, each sum made in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.device.precision import pick_device
from musubi_core.encoders.stored_scales import HELPERS, is_fp8, read_unscaled
from musubi_core.errors import BadFileError
from musubi_core.events import Listener, Note, Progress, ShouldStop
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made
from musubi_core.lora_tools.base_model import BaseModel, Target, open_base
from musubi_core.lora_tools.dense import DENSE, dense_change, matrix_size
from musubi_core.lora_tools.fp8_file import Making, Stopped, chosen_weights
from musubi_core.lora_tools.fp8_file_config import DEFAULT_GRANULARITY
from musubi_core.lora_tools.layers import dtype_for
from musubi_core.lora_tools.merge_config import MergeConfig
from musubi_core.lora_tools.records import LoraSource, Record
from musubi_core.quantization.scheme import Scheme

# parts of changes without a rank -> the parameter of the layer that they are added to
_PARAMETERS = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """part: the tensor that is added as it is, or "" for a change that is computed. target: where to."""

    source: LoraSource
    record: Record
    multiplier: float
    part: str
    target: Target

    def add_to(self, total: Tensor) -> None:
        """total: the whole weight or bias in float32."""
        tensors = self.source.read(self.record)
        change = tensors[self.part].float() if self.part else dense_change(self.record, tensors)
        rows = self.target.rows(total)
        rows.add_(self.target.turned(change.reshape(rows.shape)), alpha=self.multiplier)


def merge_into_model(
    config: MergeConfig, sources: Sequence[LoraSource], emit: Listener, should_stop: ShouldStop
) -> bool:
    """Write the model with every change added; all else is copied. Returns False when stopped."""
    assert config.dit is not None
    with open_base(config.dit, config.architecture) as base:
        additions = additions_to(base, sources, config.multipliers)
        metadata = {k: v for k, v in base.checkpoint.metadata.items() if not k.startswith("sshs_")}
        named = zip(config.lora_weight, config.multipliers, strict=True)
        metadata["musubi_core.merged"] = ", ".join(f"{path.name} {strength:g}" for path, strength in named)
        work = Merging(base=base, additions=additions, metadata=metadata, emit=emit, should_stop=should_stop)
        if config.fp8 is not None:
            done = _write_fp8(config.output_file, config.fp8, work)
        else:
            done = _write_plain(config, work)
        if done:
            count = len(base.names)
            emit(Note(text=f"{len(additions)} tensors of {count} were changed by {len(sources)} LoRAs."))
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """What goes into the new file, and who is told. additions: by name in the file of the model."""

    base: BaseModel
    additions: Mapping[str, Sequence[Addition]]
    metadata: dict[str, str]
    emit: Listener
    should_stop: ShouldStop

    def changed(self, name: str) -> Tensor | None:
        """A tensor with its additions in float32; None where there are none."""
        found = self.additions.get(name)
        return merged(self.base, name, found, torch.float32) if found else None


def _write_plain(config: MergeConfig, work: Merging) -> bool:
    """In the number formats of the file or the one asked for. Returns False when stopped."""
    infos = _infos(config, work.base)
    done = 0

    def make(name: str) -> Tensor:
        nonlocal done
        if work.should_stop():
            raise Stopped
        done += 1
        work.emit(Progress(stage="merge", done=done, total=len(infos), text=name))
        return merged(work.base, name, work.additions.get(name, ()), getattr(torch, infos[name].dtype))

    try:
        write_made(config.output_file, infos, make, work.metadata)
    except Stopped:
        return False
    return True


def _write_fp8(output: Path, target: str, work: Merging) -> bool:
    """Weights as `quantize-fp8` makes them, each sum rounded once. Returns False when stopped."""
    checkpoint = work.base.checkpoint
    names = chosen_weights(checkpoint, work.base.spec)
    if twice := [name for name in names if is_fp8(checkpoint, name)]:
        raise BadFileError(
            f"{checkpoint.path} holds {len(twice)} fp8 weights (first: {twice[0]}), which would be rounded a "
            "second time. Use the bf16 file of this model, or leave out --fp8: the result then is bf16."
        )
    making = Making(
        checkpoint=checkpoint,
        names=frozenset(names),
        changed=work.changed,
        scheme=Scheme(granularity=DEFAULT_GRANULARITY[target]),
        target=target,
        device=pick_device(None),
        emit=work.emit,
        should_stop=work.should_stop,
    )
    try:
        write_made(output, making.infos(), making.tensor, making.metadata(work.metadata))
    except Stopped:
        return False
    work.emit(Note(text=making.summary))
    return True


def _infos(config: MergeConfig, base: BaseModel) -> dict[str, TensorInfo]:
    """Every tensor of the output. fp8 becomes bf16 unless a format is given, and needs no scales then."""
    header = base.checkpoint.header
    fp8 = any(is_fp8(base.checkpoint, name) for name in header)
    found = {}
    for name, info in header.items():
        if fp8 and name.endswith(HELPERS):
            continue
        dtype = "bfloat16" if is_fp8(base.checkpoint, name) else info.dtype
        if getattr(torch, info.dtype).is_floating_point:
            dtype = dtype_for(config.save_precision, dtype)
        found[name] = TensorInfo(shape=info.shape, dtype=dtype)
    return found


def merged(base: BaseModel, name: str, additions: Sequence[Addition], dtype: torch.dtype) -> Tensor:
    """One tensor of the file with its additions. Untouched ones keep their bits where the format stays.

    Raises BadFileError when the sum is not finite in `dtype`.
    """
    if not additions:
        if is_fp8(base.checkpoint, name):
            return read_unscaled(base.checkpoint, name).to(dtype)
        return base.checkpoint.read(name).to(dtype)
    total = read_unscaled(base.checkpoint, name).to(torch.float32)
    for one in additions:
        one.add_to(total)
    rounded = total.to(dtype)
    if not rounded.isfinite().all():
        raise BadFileError(
            f"{name} would hold NaN or infinity after the merge as {str(dtype).removeprefix('torch.')}. Use "
            "another number format, or look for the damaged file. Nothing was written."
        )
    return rounded


def additions_to(
    base: BaseModel, sources: Sequence[LoraSource], multipliers: Sequence[float]
) -> dict[str, list[Addition]]:
    """{name in the file: what is added to it}. Raises BadFileError for anything that has no place."""
    found: dict[str, list[Addition]] = {}
    for source, multiplier in zip(sources, multipliers, strict=True):
        targets = base.targets([record.base for record in source.records], source.path)
        taken: dict[str, list[Addition]] = {}
        for record in source.records:
            target = targets[record.base]
            for part in [""] if record.kind in DENSE else list(record.keys):
                own = f"{target.layer}.{_PARAMETERS.get(part, 'weight')}"
                if own not in base.names:
                    raise BadFileError(
                        f"{source.path}: {record.keys[part]} changes {own}, which {base.path} does not have."
                    )
                addition = Addition(
                    source=source, record=record, multiplier=multiplier, part=part, target=target
                )
                _refuse_second(addition, taken.setdefault(own, []), own)
                _check_size(addition, base, own)
                taken[own].append(addition)
                found.setdefault(base.names[own], []).append(addition)
    return found


def _refuse_second(addition: Addition, others: Sequence[Addition], own: str) -> None:
    """Raises BadFileError when a file changes the same rows under two names."""
    mine = addition.target
    for other in others:
        theirs = other.target
        apart = (mine.stop is not None and mine.stop <= theirs.start) or (
            theirs.stop is not None and theirs.stop <= mine.start
        )
        if other.record.base != addition.record.base and not apart:
            raise BadFileError(
                f"{addition.source.path} changes {own} twice, as {other.record.base} and "
                f"{addition.record.base}."
            )


def _check_size(addition: Addition, base: BaseModel, own: str) -> None:
    whole, target = base.shape(own), addition.target
    shape = (len(range(whole[0])[target.start : target.stop]), *whole[1:])
    record = addition.record
    if addition.part:
        size, fits = record.shapes[addition.part], prod(record.shapes[addition.part]) == prod(shape)
    else:
        size = matrix_size(record, addition.source.path)
        fits = size == (shape[0], prod(shape[1:]))
    if not fits:
        where = own if shape == whole else f"that part of {own}"
        raise BadFileError(
            f"{addition.source.path}: {record.base} changes a weight of {list(size)}, but {where} of "
            f"{base.path} is {list(shape)}. Give the model that this LoRA was made for."
        )
