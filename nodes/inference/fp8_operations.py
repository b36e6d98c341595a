"""The linear layer that ComfyUI builds a model from when some of its weights are in scaled fp8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from .fp8_layout import is_scaled_fp8, requantised


class ScaledFp8Operations(comfy.ops.manual_cast):
    """ComfyUI's layers, each cast to the dtype of its input; linear ones may hold quantised weights."""

    class Linear(comfy.ops.manual_cast.Linear):
        """A linear layer whose weight is what the state dict brings: plain, or a QuantizedTensor."""

        def __init__(
            self,
            in_features: int,
            out_features: int,
            bias: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
        ) -> None:
            # The weight has no memory before it is loaded: a model in bf16 would be twice what is kept.
            nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight: Any = None
            self.bias: Any = None
            self._has_bias, self._dtype, self._home = bias, dtype, device

        @property
        def weight_scale(self) -> Tensor:
            """The scale as an attribute, because ComfyUI looks up every name of the state dict."""
            return self.weight._params.scale

        def _load_from_state_dict(
            self,
            state_dict: dict[str, Any],
            prefix: str,
            local_metadata: dict[str, Any],
            strict: bool,
            missing_keys: list[str],
            unexpected_keys: list[str],
            error_msgs: list[str],
        ) -> None:
            shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
            if self._has_bias:
                shapes["bias"] = (self.out_features,)
            for part, shape in shapes.items():
                given = state_dict.get(prefix + part)
                if given is None:
                    missing_keys.append(prefix + part)
                    given = torch.zeros(shape)
                if tuple(given.shape) != shape:
                    error_msgs.append(f"{prefix}{part} is {list(given.shape)}, expected {list(shape)}.")
                setattr(self, part, nn.Parameter(self._placed(given), requires_grad=False))
            known = {prefix + part for part in shapes}
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in known]

        def _placed(self, tensor: Any) -> Any:
            """A loaded tensor where the layer was built, in the layer's dtype. Codes and scales stay."""
            if is_scaled_fp8(tensor):
                return tensor.to(device=self._home) if self._home is not None else tensor
            return tensor.to(device=self._home, dtype=self._dtype)

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            """Plain tensors: a quantised one would be written to files as if it were bf16.

            ComfyUI adds up the bytes of what is here to know the size of a model.
            """
            if not is_scaled_fp8(self.weight):
                super()._save_to_state_dict(destination, prefix, keep_vars)
                return
            tensors = self.weight.layout_cls.state_dict_tensors(self.weight._qdata, self.weight._params)
            destination.update({f"{prefix}weight{end}": tensor for end, tensor in tensors.items()})
            if self.bias is not None:
                destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
            """What `to` calls. torch's own would swap the insides of quantised tensors, which they forbid."""
            for name, parameter in self._parameters.items():
                if parameter is not None:
                    self._parameters[name] = nn.Parameter(fn(parameter), requires_grad=False)
            return self

        def convert_weight(self, weight: Any, inplace: bool = False, **_: Any) -> Tensor:
            """A weight as plain numbers, for ComfyUI's patches."""
            return weight.dequantize() if is_scaled_fp8(weight) else weight

        def set_weight(
            self,
            weight: Tensor,
            inplace_update: bool = False,
            seed: int | None = None,
            return_weight: bool = False,
            **_: Any,
        ) -> Any:
            """Take a patched weight, rounded again where it was in 8 bits; return it if asked to."""
            old = self.weight
            new = requantised(weight, old) if is_scaled_fp8(old) else weight.to(old.dtype)
            if return_weight:
                return new
            self.weight = nn.Parameter(new, requires_grad=False)
            return None
