"""A model file in memory with its large weights in 8 bits, LoRAs merged before: for samplers elsewhere.

Tensors keep the names of the file, without the prefix that marks the network among others. What is rounded,
and how, is what `quantize-fp8` and training with --fp8_scaled do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from musubi_core.encoders.stored_scales import is_fp8, read_scale, read_unscaled
from musubi_core.errors import BadFileError, ConfigError
from musubi_core.events import Listener, Note, Progress, ShouldStop, ignore, never
from musubi_core.lora_tools.base_model import BaseModel, open_base
from musubi_core.lora_tools.dense import refuse_others
from musubi_core.lora_tools.merge_base import Addition, additions_to, merged
from musubi_core.lora_tools.records import open_lora
from musubi_core.quantization.fp8 import DTYPES, Quantised, Rows, quantise_rows, sampled_error
from musubi_core.quantization.report import error_text
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

PLAIN = ("bfloat16", "float16", "float32")
HALF = torch.bfloat16  # what fp8 files are read as where no 8-bit weight is wanted
ADDABLE = ("diff", "norm")  # changes of a LoRA file that have no rank and are added as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledWeight:
    """An 8-bit weight, how its scales lie, and the number format of the weight it stands for."""

    quantised: Quantised
    scheme: Scheme
    dtype: torch.dtype


ModelTensors: TypeAlias = dict[str, Tensor | ScaledWeight]


def read_fp8_model(
    path: Path,
    scheme: Scheme,
    *,
    loras: Sequence[tuple[Path, float]] = (),
    upcast_fp8: bool = False,
    device: torch.device,
    emit: Listener = ignore,
    should_stop: ShouldStop = never,
) -> ModelTensors | None:
    """Every tensor of the network in `path`, one after the other; None when stopped.

    loras: files of any program and their strengths. Weights that the file keeps in fp8 are taken as they
    are, with their own scales, whatever the scheme; those that a LoRA changes would be rounded a second time,
    which is refused unless `upcast_fp8`. device: where weights are rounded; all tensors end on the CPU.
    Raises BadFileError or ConfigError.
    """
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_base(path))
        wanted = _wanted(base)
        sources = [stack.enter_context(open_lora(lora)) for lora, _ in loras]
        for source in sources:
            refuse_others(source, ADDABLE)
        additions = additions_to(base, sources, [strength for _, strength in loras])
        reading = _Reading(base=base, scheme=scheme, device=device, additions=additions)
        if not upcast_fp8:
            reading.refuse_second_rounding(wanted)
        tensors: ModelTensors = {}
        for done, (own, name) in enumerate(base.names.items()):
            if should_stop():
                return None
            emit(Progress(stage="load", done=done, total=len(base.names), text=own))
            tensors[own] = reading.weight(name) if name in wanted else reading.precise(name)
        emit(Progress(stage="load", done=len(base.names), total=len(base.names)))
        for text in reading.report(wanted, len(sources)):
            emit(Note(text=text))
    return tensors


def check_fp8_model(path: Path) -> None:
    """Raises BadFileError or ConfigError when `read_fp8_model` cannot read this file. Reads no weights."""
    with open_base(path) as base:
        _wanted(base)


def _wanted(base: BaseModel) -> set[str]:
    """Names in the file of the weights to have in 8 bits."""
    if not base.spec.fp8_targets:
        raise ConfigError(f"fp8 weights are not available for {base.spec.name}.")
    config = QuantisationConfig(targets=base.spec.fp8_targets, keep_precise=base.spec.keep_precise)
    return {
        name
        for own, name in base.names.items()
        if own.endswith(".weight") and len(base.checkpoint.header[name].shape) == 2 and config.covers(own)
    }


@dataclass(slots=True, kw_only=True)
class _Reading:
    """Where tensors come from and what they become. Names are those in the file."""

    base: BaseModel
    scheme: Scheme
    device: torch.device
    additions: Mapping[str, Sequence[Addition]]
    errors: dict[str, float] = field(default_factory=dict)  # layer -> relative RMS error
    taken: int = 0  # weights that were in 8 bits already

    def refuse_second_rounding(self, wanted: set[str]) -> None:
        """Raises BadFileError for a LoRA on weights that are in 8 bits already."""
        twice = [name for name in self.additions if name in wanted and is_fp8(self.base.checkpoint, name)]
        if twice:
            raise BadFileError(
                f"{self.base.path} holds fp8 weights, and a LoRA changes {len(twice)} of them (first: "
                f"{twice[0]}), so they would be rounded a second time. Use the bf16 file of this model, put "
                "the LoRA behind the loader instead, or allow it with upcast_fp8."
            )

    def weight(self, name: str) -> ScaledWeight:
        """A weight in 8 bits."""
        checkpoint = self.base.checkpoint
        stored = checkpoint.header[name]
        if is_fp8(checkpoint, name) and name not in self.additions:
            self.taken += 1
            return self._stored(name)
        if stored.dtype in PLAIN and name not in self.additions:
            read: Rows = partial(checkpoint.read_rows, name)
        else:
            whole = merged(self.base, name, self.additions.get(name, ()), torch.float32)
            read = lambda start, stop: whole[start:stop]  # noqa: E731
        where = f"{checkpoint.path}: {name}"
        made = quantise_rows(read, stored.shape, self.scheme, device=self.device, name=where)
        self.errors[name.removesuffix(".weight")] = sampled_error(read, made)
        return ScaledWeight(
            quantised=Quantised(codes=made.codes.cpu(), scale=made.scale.cpu()),
            scheme=self.scheme.fitting(stored.shape),
            dtype=getattr(torch, stored.dtype) if stored.dtype in PLAIN else HALF,
        )

    def precise(self, name: str) -> Tensor:
        """A tensor that is not rounded, in the number format of the file."""
        checkpoint = self.base.checkpoint
        dtype = HALF if is_fp8(checkpoint, name) else getattr(torch, checkpoint.header[name].dtype)
        if name in self.additions:
            return merged(self.base, name, self.additions[name], dtype)
        if is_fp8(checkpoint, name):
            return read_unscaled(checkpoint, name).to(dtype)
        return checkpoint.read(name, own_memory=True)

    def _stored(self, name: str) -> ScaledWeight:
        """Codes of the file with the scales beside them; plainly cast weights have a scale of 1."""
        codes = self.base.checkpoint.read(name, own_memory=True)
        shape = (codes.shape[0], codes.shape[1])
        scale = read_scale(self.base.checkpoint, name, shape)
        scale = torch.ones(()) if scale is None else scale
        return ScaledWeight(
            quantised=Quantised(codes=codes, scale=scale), scheme=_scheme_of(codes, scale), dtype=HALF
        )

    def report(self, wanted: set[str], loras: int) -> list[str]:
        """What was done, in a few lines."""
        lines = [f"{len(wanted)} weights are in fp8{error_text(self.errors)}."]
        if self.taken:
            lines.append(f"{self.taken} of them were in the file like this and have not been rounded again.")
        if loras:
            files = "LoRA" if loras == 1 else f"{loras} LoRAs"
            count = len(self.additions)
            lines.append(
                f"{count} {'tensor was' if count == 1 else 'tensors were'} changed by the {files} before."
            )
        return lines


def _scheme_of(codes: Tensor, scale: Tensor) -> Scheme:
    """The scheme that codes (out, in) and their scale were made with, see `Scheme`."""
    scheme = Scheme(format=next(name for name, dtype in DTYPES.items() if dtype == codes.dtype))
    if scale.ndim == 0:
        return replace(scheme, granularity="tensor")
    if scale.ndim == 2:
        return replace(scheme, granularity="channel")
    return replace(scheme, block=codes.shape[1] // scale.shape[1])
