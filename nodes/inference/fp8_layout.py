"""Weights in scaled fp8 as ComfyUI knows quantised tensors: codes and scale in one object.

The scale must live inside the weight: ComfyUI backs up, moves and restores weights, and a scale in a buffer
beside one would be left behind. The arithmetic is the core's, so that a model samples as it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy import quant_ops
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from musubi_core.errors import MissingLibraryError
from musubi_core.lora_tools.fp8_model import ScaledWeight
from musubi_core.quantization.fp8 import dequantise, quantise
from musubi_core.quantization.scheme import Scheme

BLOCKS = Scheme()
LAYOUT = "MusubiScaledFp8Layout"  # the name under which ComfyUI's registry knows it


def quantised_tensor(weight: ScaledWeight) -> Any:
    """A weight as ComfyUI's QuantizedTensor. Raises MissingLibraryError without comfy-kitchen."""
    _register()
    made = weight.quantised
    return _wrap(made.codes, made.scale, weight.scheme, weight.dtype)


def requantised(weight: Tensor, like: Any) -> Any:
    """The QuantizedTensor nearest to a float weight, with scales that lie as in `like`."""
    params = like._params
    made = quantise(weight, params.scheme)
    return _wrap(made.codes, made.scale, params.scheme, params.orig_dtype)


def is_scaled_fp8(weight: Any) -> bool:
    """Whether a weight is in our layout."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == LAYOUT


def _wrap(codes: Tensor, scale: Tensor, scheme: Scheme, dtype: torch.dtype) -> Any:
    shape = tuple(codes.shape)
    params = _layout().Params(scale=scale, orig_dtype=dtype, orig_shape=shape, scheme=scheme)
    return QuantizedTensor(codes, LAYOUT, params)


def _layout() -> Any:
    return quant_ops.get_layout_class(LAYOUT)


def _register() -> None:
    """Make the layout known once. Not at import, because comfy-kitchen may be missing."""
    if not getattr(quant_ops, "_CK_AVAILABLE", False):
        raise MissingLibraryError(
            "This node needs comfy-kitchen, which ComfyUI installs since version 0.8. Install ComfyUI's "
            "requirements.txt again."
        )
    from comfy_kitchen.tensor.base import LAYOUTS

    if LAYOUT not in LAYOUTS:
        quant_ops.register_layout_class(LAYOUT, _made_layout())


def _made_layout() -> type:
    from comfy_kitchen.tensor.base import BaseLayoutParams, QuantizedLayout

    class ScaledFp8Layout(QuantizedLayout):
        """What ComfyUI asks about a kind of quantised tensor."""

        @dataclass(frozen=True)
        class Params(BaseLayoutParams):
            """scale: float32, see `Scheme`."""

            scheme: Scheme = BLOCKS

        @classmethod
        def quantize(cls, tensor: Tensor, *, scheme: Scheme = BLOCKS, **_: Any) -> tuple[Tensor, Any]:
            """Codes and parameters. Rounds to the nearest also when asked to round at random: only files are
            written from this, see fp8_patcher, and there the nearest is the most exact.
            """
            made = quantise(tensor, scheme)
            shape = tuple(tensor.shape)
            fitting = scheme.fitting(shape)
            return made.codes, cls.Params(
                scale=made.scale, orig_dtype=tensor.dtype, orig_shape=shape, scheme=fitting
            )

        @classmethod
        def dequantize(cls, qdata: Tensor, params: Any) -> Tensor:
            return dequantise(qdata, params.scale, params.orig_dtype)

        @classmethod
        def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, Tensor]:
            return qtensor._qdata, qtensor._params.scale

        @classmethod
        def state_dict_tensors(cls, qdata: Tensor, params: Any) -> dict[str, Tensor]:
            return {"": qdata, "_scale": params.scale}

        @classmethod
        def requantize_kwargs(cls, qtensor: Any) -> dict[str, Any]:
            return {"scheme": qtensor._params.scheme}

    return ScaledFp8Layout
