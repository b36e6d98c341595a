"""Weights that a file keeps as scaled float8 (ComfyUI's `fp8_scaled` files), read as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from musubi_core.encoders.precision import dtype_name
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint
from musubi_core.quantization.fp8 import dequantise

WEIGHT_SCALES = (".scale_weight", ".weight_scale")  # older and newer name, beside `.weight`
HELPERS = (*WEIGHT_SCALES, ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


def without_helpers(names: Iterable[str]) -> list[str]:
    """The names that are weights, not their scales or markers."""
    return [name for name in names if not name.endswith(HELPERS)]


def read_unscaled(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor as floating-point numbers: float8 with a scale beside it is multiplied out in float32.

    Raises BadFileError for anything else that is not floating point, e.g. packed 4-bit weights.
    """
    tensor = checkpoint.read(name, own_memory=True)
    if not tensor.is_floating_point():
        raise BadFileError(
            f"{checkpoint.path}: {name} is stored as {dtype_name(tensor.dtype)}, a packed form that is not "
            "read here. Use the fp16, bf16 or fp8_scaled file of this model."
        )
    scale = read_scale(checkpoint, name, tuple(tensor.shape))
    return tensor if scale is None else dequantise(tensor, scale, torch.float32)


def read_scale(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The scale beside the weight `name` of this shape: (), (out, 1) or (out, in / block, 1), float32.

    None when there is none. Raises BadFileError for one of another size.
    """
    scale_name = _scale_of(checkpoint, name)
    if scale_name is None:
        return None
    scale = checkpoint.read(scale_name).to(torch.float32)
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == shape[0]:
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    blocks = scale.shape[1] if scale.ndim in (2, 3) else 0
    if len(shape) != 2 or not blocks or shape[1] % blocks or scale.numel() != shape[0] * blocks:
        raise BadFileError(
            f"{checkpoint.path}: {scale_name} has shape {list(scale.shape)} for a weight of shape "
            f"{list(shape)}; expected one scale, one per row, or one per block of a row. Use the fp16 or "
            "bf16 file of this model."
        )
    return scale.reshape(shape[0], blocks, 1)


def is_fp8(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is stored in 8 bits."""
    return checkpoint.header[name].dtype.startswith("float8")


def _scale_of(checkpoint: Checkpoint, name: str) -> str | None:
    if not name.endswith(".weight"):
        return None
    stem = name.removesuffix(".weight")
    return next((stem + end for end in WEIGHT_SCALES if stem + end in checkpoint.header), None)
