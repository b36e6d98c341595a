"""Weights that a file keeps as scaled float8 (ComfyUI's `fp8_scaled` files), read as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from musubi_core.encoders.precision import dtype_name
from musubi_core.errors import BadFileError
from musubi_core.files.checkpoint import Checkpoint

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
    scale_name = _scale_of(checkpoint, name)
    if scale_name is None:
        return tensor
    scale = checkpoint.read(scale_name).float()
    if scale.numel() not in (1, tensor.shape[0]):
        raise BadFileError(
            f"{checkpoint.path}: {scale_name} has {scale.numel()} numbers for a weight of shape "
            f"{list(tensor.shape)}; expected one, or one per row. Use the fp16 or bf16 file of this model."
        )
    return tensor.to(torch.float32) * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def _scale_of(checkpoint: Checkpoint, name: str) -> str | None:
    if not name.endswith(".weight"):
        return None
    stem = name.removesuffix(".weight")
    return next((stem + end for end in WEIGHT_SCALES if stem + end in checkpoint.header), None)
