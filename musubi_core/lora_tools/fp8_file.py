"""`quantize-fp8`: a model file with 8-bit weights, for our own loader or for ComfyUI's.

Ours (docs/quantize-fp8.md): `X.weight` in fp8, `X.scale_weight` in float32, and the scheme in the metadata.
ComfyUI's: `X.weight` in fp8, `X.weight_scale`, one number, and `X.comfy_quant`, a JSON text as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from musubi_core.device.precision import pick_device
from musubi_core.encoders.stored_scales import is_fp8, read_unscaled, without_helpers
from musubi_core.errors import BadFileError, ConfigError, Stopped
from musubi_core.events import FileWritten, Listener, Note, Progress, ShouldStop, Warned, ignore, never
from musubi_core.files.checkpoint import Checkpoint, open_checkpoint
from musubi_core.files.tensor_info import TensorInfo
from musubi_core.files.tensors import write_made
from musubi_core.lora_tools.fp8_file_config import Fp8FileConfig
from musubi_core.models.detection import architecture_of
from musubi_core.models.registry import architecture
from musubi_core.models.spec import ArchSpec
from musubi_core.quantization.fp8 import DTYPES, Quantised, Rows, quantise_rows, sampled_error
from musubi_core.quantization.report import error_text
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

PLAIN = ("bfloat16", "float16", "float32")
SCALE_NAMES = {"musubi": "scale_weight", "comfyui": "weight_scale"}


def quantise_file(
    config: Fp8FileConfig, emit: Listener = ignore, should_stop: ShouldStop = never
) -> Path | None:
    """Write `config.input` with the large weights in 8 bits. Returns the new file; None when stopped.

    Memory holds parts of one weight at a time. Raises ConfigError or BadFileError; then, and when stopped,
    nothing is written.
    """
    config.check()
    device = pick_device(config.device)
    with open_checkpoint(config.input) as checkpoint:
        spec = architecture(config.architecture) if config.architecture else architecture_of(config.input)
        names = chosen_weights(checkpoint, spec)
        _refuse_fp8(checkpoint, names, config)
        made = Making(
            checkpoint=checkpoint,
            names=frozenset(names),
            scheme=config.as_scheme(),
            target=config.target,
            device=device,
            emit=emit,
            should_stop=should_stop,
        )
        infos = made.infos()
        try:
            write_made(config.output, infos, made.tensor, made.metadata(checkpoint.metadata))
        except Stopped:
            return None
        size = sum(prod(info.shape) * _width(info.dtype) for info in checkpoint.header.values())
    _report(config, made, size, emit)
    return config.output


def as_stored(name: str) -> Tensor | None:
    """No tensor but the one in the file."""
    return None


@dataclass(slots=True, kw_only=True)
class Making:
    """The tensors of the new file, made when their turn comes."""

    checkpoint: Checkpoint
    names: frozenset[str]  # of weights that become 8-bit
    changed: Callable[[str], Tensor | None] = as_stored  # what stands in for a tensor of the file, float32
    scheme: Scheme
    target: str
    device: torch.device
    emit: Listener
    should_stop: ShouldStop
    errors: dict[str, float] = field(default_factory=dict)  # layer -> relative RMS error
    total: int = 0
    done: int = 0

    def infos(self) -> dict[str, TensorInfo]:
        """What every tensor of the new file will be."""
        infos: dict[str, TensorInfo] = {}
        for name in without_helpers(self.checkpoint.header):
            stored = self.checkpoint.header[name]
            if name not in self.names:
                dtype = "bfloat16" if is_fp8(self.checkpoint, name) else stored.dtype
                infos[name] = TensorInfo(shape=stored.shape, dtype=dtype)
                continue
            layer = name.removesuffix("weight")
            fitting = self.scheme.fitting(stored.shape)
            infos[name] = TensorInfo(shape=stored.shape, dtype=_dtype_name(fitting))
            infos[layer + SCALE_NAMES[self.target]] = TensorInfo(
                shape=fitting.scale_shape(stored.shape), dtype="float32"
            )
            if self.target == "comfyui":
                infos[f"{layer}comfy_quant"] = TensorInfo(shape=(len(self.mark()),), dtype="uint8")
        self.total = len(infos)
        return infos

    def tensor(self, name: str) -> Tensor:
        """One tensor of the new file. Raises Stopped."""
        if self.should_stop():
            raise Stopped
        layer, _, part = name.rpartition(".")
        if part == "comfy_quant":
            found = torch.frombuffer(bytearray(self.mark()), dtype=torch.uint8)
        elif part == SCALE_NAMES[self.target] and f"{layer}.weight" in self.names:
            found = self.quantised(f"{layer}.weight").scale  # a file has all scales before all codes
        elif name in self.names:
            found = self.quantised(name).codes
        else:
            found = self.precise(name)
        self.done += 1
        self.emit(Progress(stage="quantise", done=self.done, total=self.total, text=name))
        return found

    def quantised(self, name: str) -> Quantised:
        """Codes and scale of a weight, with its error noted."""
        stored, whole = self.checkpoint.header[name], self.changed(name)
        if whole is None and stored.dtype in PLAIN:
            read: Rows = partial(self.checkpoint.read_rows, name)
        else:
            rows = read_unscaled(self.checkpoint, name) if whole is None else whole
            read = lambda start, stop: rows[start:stop]  # noqa: E731
        where = f"{self.checkpoint.path}: {name}"
        made = quantise_rows(read, stored.shape, self.scheme, device=self.device, name=where)
        self.errors[name.removesuffix(".weight")] = sampled_error(read, made)
        return made

    def precise(self, name: str) -> Tensor:
        """A tensor that is not rounded; fp8 with a scale beside it, which the new file lacks, as bf16."""
        changed = self.changed(name)
        if changed is not None:
            stored = self.checkpoint.header[name].dtype
            found = changed.to(getattr(torch, stored) if stored in PLAIN else torch.bfloat16)
            if not found.isfinite().all():
                raise BadFileError(f"{name} would hold NaN or infinity as {stored}. Nothing was written.")
            return found
        if is_fp8(self.checkpoint, name):
            return read_unscaled(self.checkpoint, name).to(torch.bfloat16)
        return self.checkpoint.read(name)

    def mark(self) -> bytes:
        """ComfyUI's description of a layer. Without the second entry it would also round activations."""
        entries = {"format": _dtype_name(self.scheme), "full_precision_matrix_mult": True}
        return json.dumps(entries).encode("utf-8")

    def metadata(self, stored: Mapping[str, str]) -> dict[str, str]:
        """What the input says of itself; in our own form also the scheme."""
        metadata = {key: text for key, text in stored.items() if key != "_quantization_metadata"}
        if self.target == "musubi":
            scheme = self.scheme
            metadata |= {
                "quant": f"{scheme.granularity}-fp8",
                "block": str(scheme.block) if scheme.granularity == "block" else "",
                "quant_format": _dtype_name(scheme),
            }
        return {"format": "pt", **metadata}

    @property
    def summary(self) -> str:
        """How many weights were rounded, and how far."""
        return f"{len(self.names)} weights are in fp8{error_text(self.errors)}."


def chosen_weights(checkpoint: Checkpoint, spec: ArchSpec) -> list[str]:
    """The weights to put into 8 bits. Raises ConfigError or BadFileError when that cannot be done."""
    if not spec.fp8_targets:
        raise ConfigError(f"fp8 weights are not available for {spec.name}.")
    if spec.detect(checkpoint.header) is None:
        raise BadFileError(f"{checkpoint.path} is no {spec.name} network: {spec.refuse(checkpoint.header)}")
    wanted = QuantisationConfig(targets=spec.fp8_targets, keep_precise=spec.keep_precise)
    return [
        name
        for name in without_helpers(checkpoint.header)
        if name.endswith(".weight") and len(checkpoint.header[name].shape) == 2 and wanted.covers(name)
    ]


def _refuse_fp8(checkpoint: Checkpoint, names: list[str], config: Fp8FileConfig) -> None:
    fp8 = [name for name in names if is_fp8(checkpoint, name)]
    if fp8 and not config.upcast_fp8:
        raise BadFileError(
            f"{config.input} holds fp8 weights already ({len(fp8)} of {len(names)}, first: {fp8[0]}); they "
            "would be rounded a second time. Use the bf16 or fp16 file of this model, or --upcast_fp8."
        )


def _report(config: Fp8FileConfig, made: Making, before: int, emit: Listener) -> None:
    after = config.output.stat().st_size
    emit(Note(text=f"{made.summary} {before / 1e9:.2f} GB became {after / 1e9:.2f} GB."))
    upcast = sum(is_fp8(made.checkpoint, name) for name in made.names)
    if upcast:
        emit(
            Warned(
                text=f"{upcast} of these weights were fp8 already and have been rounded a second time. The "
                "bf16 file of this model would be more exact."
            )
        )
    emit(FileWritten(path=config.output, what=f"fp8 model for {config.target}"))


def _dtype_name(scheme: Scheme) -> str:
    return str(DTYPES[scheme.format]).removeprefix("torch.")


def _width(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)
