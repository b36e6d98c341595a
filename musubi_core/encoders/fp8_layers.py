"""Linear layers that become 8-bit ones while a checkpoint is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from musubi_core.device.fp8_matmul import why_no_fp8_matmul
from musubi_core.device.workers import one_core_workers
from musubi_core.encoders.stored_scales import is_fp8, read_scale, read_unscaled
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint
from musubi_core.quantization.fp8 import Quantised, Rows, quantise_rows, sampled_error, to_fp8
from musubi_core.quantization.fp8_linear import Fp8Linear, put_fp8_linears
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

MOST_WORKERS = 4  # more would wait for the disk

Transform = Callable[[str, Tensor], Tensor]


def read_fp8_layers(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    config: QuantisationConfig,
    *,
    device: torch.device,
    place: Callable[[str], torch.device],
    transform: Transform | None = None,
    begin: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Put 8-bit layers into an empty `module`, in place, and read their codes and scales, by own name.

    Scaled fp8 weights of the file whose scales have the very form asked for are taken as they are. Others
    that are fp8 already are refused unless `config.upcast_fp8`. Raises BadFileError.
    device: where weights are put into 8 bits. place: where they go afterwards, by own name. begin: told the
    number of tensors that are done, again and again; what it raises ends the reading.
    """
    layers = put_fp8_linears(module, config)
    names = {f"{name}.weight": layer for name, layer in layers.items()}
    if config.scheme is not None and not config.upcast_fp8:
        _refuse_fp8(checkpoint, {sources[name]: layer for name, layer in names.items()}, transform)
    for layer in layers.values():
        layer.fast = layer.fast and not why_no_fp8_matmul(device, by_row=layer.by_row)
    reading = _Reading(checkpoint=checkpoint, config=config, device=device, transform=transform)

    def read(name: str) -> dict[str, Tensor]:
        codes, scale = reading.layer(name, sources[name], names[name])
        if scale is None:
            return {name: codes.to(place(name))}
        scale_name = f"{name.removesuffix('weight')}scale_weight"
        return {name: codes.to(place(name)), scale_name: scale.to(place(scale_name))}

    state: dict[str, Tensor] = {}
    workers = min(MOST_WORKERS, torch.get_num_threads()) if reading.by_rows else 1
    with one_core_workers(workers) if workers > 1 else contextlib.nullcontext() as pool:
        begin(0)
        for part in map(read, names) if pool is None else pool.map(read, names):
            state |= part
            begin(len(state))
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Where weights come from and what they become."""

    checkpoint: Checkpoint
    config: QuantisationConfig
    device: torch.device
    transform: Transform | None

    @property
    def by_rows(self) -> bool:
        """Whether no weight is held whole, so that several may be read at once, on the CPU."""
        whole = self.transform is not None or self.config.scheme is None or self.config.upcast_fp8
        return not whole and self.device.type == "cpu"

    def layer(self, name: str, source: str, layer: Fp8Linear) -> tuple[Tensor, Tensor | None]:
        """Codes and scale of one layer, whose weight is called `source` in the file."""
        checkpoint, scheme = self.checkpoint, self.config.scheme
        if scheme is None:
            whole = read_unscaled(checkpoint, source)
            whole = whole if self.transform is None else self.transform(name, whole)
            return to_fp8(whole).reshape(layer.weight.shape), None
        if self.transform is not None:
            made = _quantised(checkpoint, source, layer, scheme, self.device, partial(self.transform, name))
            return made.codes, made.scale
        scale = _own_scale(checkpoint, source, layer)
        if scale is not None:
            return checkpoint.read(source, own_memory=True), scale
        made = _quantised(checkpoint, source, layer, scheme, self.device)
        return made.codes, made.scale


def _refuse_fp8(checkpoint: Checkpoint, layers: Mapping[str, Fp8Linear], transform: Transform | None) -> None:
    """Raises BadFileError for a weight that would be rounded twice; nothing has been read yet."""
    for source, layer in layers.items():
        fits = transform is None and _own_scale(checkpoint, source, layer) is not None
        if fits or not is_fp8(checkpoint, source):
            continue
        dtype = checkpoint.header[source].dtype
        raise BadFileError(
            f"{checkpoint.path} holds fp8 weights already ({source} is {dtype}), and --fp8_scaled would "
            "round them a second time. Use the bf16 or fp16 file of this model. --upcast_fp8 rounds them "
            "again all the same; without --fp8_scaled they are read as they are."
        )


def _own_scale(checkpoint: Checkpoint, source: str, layer: Fp8Linear) -> Tensor | None:
    """The scale that the file has, when codes and scale are of the very form that the layer has."""
    stored = checkpoint.header[source]
    if not is_fp8(checkpoint, source) or stored.dtype != str(layer.weight.dtype).removeprefix("torch."):
        return None
    scale = read_scale(checkpoint, source, stored.shape)
    wanted = layer.scale_weight
    return scale if scale is not None and wanted is not None and scale.shape == wanted.shape else None


def _quantised(
    checkpoint: Checkpoint,
    source: str,
    layer: Fp8Linear,
    scheme: Scheme,
    device: torch.device,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Quantised:
    """Codes and scale of a weight of the file, with the error noted in the layer."""
    layer.upcast = is_fp8(checkpoint, source)
    shape = layer.weight.shape
    stored = checkpoint.header[source]
    by_rows = stored.dtype in ("bfloat16", "float16", "float32") and stored.shape == tuple(shape)
    if by_rows and transform is None:
        read: Rows = partial(checkpoint.read_rows, source)
    else:
        whole = read_unscaled(checkpoint, source)
        whole = (whole if transform is None else transform(whole)).reshape(shape)
        read = lambda start, stop: whole[start:stop]  # noqa: E731
    made = quantise_rows(read, shape, scheme, device=device, name=f"{checkpoint.path}: {source}")
    layer.error = sampled_error(read, made)
    return made
