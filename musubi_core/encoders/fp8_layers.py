"""Linear layers that become 8-bit ones while a checkpoint is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from musubi_core.device.fp8_matmul import why_no_fp8_matmul
from musubi_core.encoders.stored_scales import is_fp8, read_scale, read_unscaled
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint
from musubi_core.quantization.fp8 import Quantised, Rows, quantise_rows, sampled_error, to_fp8
from musubi_core.quantization.fp8_linear import Fp8Linear, put_fp8_linears
from musubi_core.quantization.scheme import QuantisationConfig, Scheme

Transform = Callable[[str, Tensor], Tensor]


def read_fp8_layers(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    config: QuantisationConfig,
    *,
    device: torch.device,
    transform: Transform | None = None,
) -> dict[str, Tensor]:
    """Put 8-bit layers into an empty `module`, in place, and read their codes and scales, by own name.

    Scaled fp8 weights of the file whose scales have the very form asked for are taken as they are. Others
    that are fp8 already are refused unless `config.upcast_fp8`. Raises BadFileError.
    """
    layers = put_fp8_linears(module, config)
    names = {f"{name}.weight": layer for name, layer in layers.items()}
    if config.scheme is not None and not config.upcast_fp8:
        _refuse_fp8(checkpoint, {sources[name]: layer for name, layer in names.items()}, transform)
    state: dict[str, Tensor] = {}
    for name, layer in names.items():
        layer.fast = layer.fast and not why_no_fp8_matmul(device, by_row=layer.by_row)
        source = sources[name]
        if config.scheme is None:
            whole = read_unscaled(checkpoint, source)
            whole = whole if transform is None else transform(name, whole)
            state[name] = to_fp8(whole).to(device).reshape(layer.weight.shape)
            continue
        own = partial(transform, name) if transform else None
        scale = _own_scale(checkpoint, source, layer) if transform is None else None
        if scale is not None:
            made = Quantised(codes=checkpoint.read(source, own_memory=True), scale=scale)
        else:
            made = _quantised(checkpoint, source, layer, config.scheme, device, own)
        state[name] = made.codes.to(device)
        state[f"{name.removesuffix('weight')}scale_weight"] = made.scale.to(device)
    return state


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
    transform: Callable[[Tensor], Tensor] | None,
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
