"""LoRAs on 8-bit weights without rounding: added each time a weight is multiplied out.

ComfyUI would add a LoRA to the weight and round the sum to 8 bits again, which loses part of the LoRA
(measured: 12 % of its effect). It has another way, for weights that do not fit the card: functions that
change a weight while it is used. Here all patches of 8-bit weights go that way, whether they are loaded
whole, in part, or page by page, so the codes never change and there is nothing to undo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import comfy.utils
from torch import Tensor, nn

from .fp8_layout import is_scaled_fp8

Patches = Mapping[str, list[Any]]  # name of a weight -> ComfyUI's patches of it
_CLASSES: dict[type, type] = {}


class PatchInUse:
    """Adds the patches of one weight to the weight that it is called with."""

    def __init__(self, key: str, patches: list[Any], *, hook: bool = False) -> None:
        self.key, self.patches, self.hook = key, patches, hook

    def __call__(self, weight: Tensor) -> Tensor:
        """weight: (out, in) plain numbers, which may be changed in place."""
        return comfy.lora.calculate_weight(self.patches, weight, self.key)


class _PatchesInUse:
    """The part of a ModelPatcher class that treats 8-bit weights differently, see `with_patches_in_use`."""

    model: nn.Module
    patches: dict[str, list[Any]]
    weight_wrapper_patches: dict[str, list[Any]]

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI may choose a class of its own for the clone, e.g. one without paging."""
        return with_patches_in_use(super().clone(*args, **kwargs))  # type: ignore[misc]

    def load(self, *args: Any, force_patch_weights: bool = False, **more: Any) -> Any:
        """force_patch_weights: the weights themselves shall be patched, because they are to be saved."""
        with contextlib.nullcontext() if force_patch_weights else self._as_functions():
            return super().load(*args, force_patch_weights=force_patch_weights, **more)  # type: ignore[misc]

    def partially_unload(self, *args: Any, force_patch_weights: bool = False, **more: Any) -> Any:
        with contextlib.nullcontext() if force_patch_weights else self._as_functions():
            return super().partially_unload(  # type: ignore[misc]
                *args, force_patch_weights=force_patch_weights, **more
            )

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        found = super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]
        if unpatch_weights:
            self._drop_functions(hooks_only=False)
        return found

    def patch_hooks(self, hooks: Any) -> None:
        """Patches for some steps or prompts only."""
        super().patch_hooks(hooks)  # type: ignore[misc]
        self._drop_functions(hooks_only=True)
        wanted = self.get_combined_hook_patches(hooks)  # type: ignore[attr-defined]
        for key, layer in self._layers().items():
            if key in wanted:
                layer.weight_function = [*layer.weight_function, PatchInUse(key, wanted[key], hook=True)]

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: Patches, key: str, *args: Any, **kwargs: Any
    ) -> None:
        if not is_scaled_fp8(comfy.utils.get_attr(self.model, key)):
            super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)  # type: ignore[misc]

    def unpatch_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().unpatch_hooks(*args, **kwargs)  # type: ignore[misc]
        self._drop_functions(hooks_only=True)

    def model_state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI takes the weights of a loaded model to be patched already; these are not."""
        loaded = [
            layer for layer in self._layers().values() if getattr(layer, "comfy_patched_weights", False)
        ]
        for layer in loaded:
            layer.comfy_patched_weights = False
        try:
            return super().model_state_dict_for_saving(*args, **kwargs)  # type: ignore[misc]
        finally:
            for layer in loaded:
                layer.comfy_patched_weights = True

    @contextlib.contextmanager
    def _as_functions(self) -> Iterator[None]:
        """While it lasts, patches of 8-bit weights are among the functions instead of the patches."""
        patches, functions = self.patches, self.weight_wrapper_patches
        mine = {key: patches[key] for key in self._layers() if key in patches}
        self.patches = {key: value for key, value in patches.items() if key not in mine}
        added = {key: [PatchInUse(key, value), *functions.get(key, [])] for key, value in mine.items()}
        self.weight_wrapper_patches = {**functions, **added}
        try:
            yield
        finally:
            self.patches, self.weight_wrapper_patches = patches, functions

    def _drop_functions(self, *, hooks_only: bool) -> None:
        for layer in self._layers().values():
            layer.weight_function = [
                one
                for one in layer.weight_function
                if not isinstance(one, PatchInUse) or (hooks_only and not one.hook)
            ]

    def _layers(self) -> dict[str, Any]:
        """Layers with 8-bit weights, by the name of the weight."""
        return {
            f"{name}.weight": module
            for name, module in self.model.named_modules()
            if is_scaled_fp8(getattr(module, "weight", None))
        }


def with_patches_in_use(patcher: Any) -> Any:
    """The same patcher, of a class that adds patches to 8-bit weights while they are used.

    ComfyUI chooses the class of a patcher when it loads a model, and makes it with its own loader; so the
    class is changed afterwards.
    """
    if not isinstance(patcher, _PatchesInUse):
        patcher.__class__ = _class_for(type(patcher))
    return patcher


def _class_for(base: type) -> type:
    """One class for each class of ComfyUI's: patchers are compared by class in places."""
    if base not in _CLASSES:
        _CLASSES[base] = type(base.__name__, (_PatchesInUse, base), {})
    return _CLASSES[base]
