"""A ComfyUI MODEL whose large weights are in scaled fp8."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd

from musubi_core.errors import BadFileError
from musubi_core.events import Listener, ShouldStop, ignore, never
from musubi_core.lora_tools.fp8_model import ScaledWeight, read_fp8_model
from musubi_core.quantization.scheme import Scheme

from .fp8_layout import quantised_tensor
from .fp8_operations import ScaledFp8Operations
from .fp8_patcher import with_patches_in_use

ROOM_FOR_ROUNDING = 2 << 30  # bytes on the device: parts of one weight in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Request:
    """What is loaded: enough to load it once more."""

    path: Path
    scheme: Scheme
    loras: tuple[tuple[Path, float], ...] = ()
    upcast_fp8: bool = False


def load_fp8_model(
    request: Fp8Request,
    *,
    emit: Listener = ignore,
    should_stop: ShouldStop = never,
    disable_dynamic: bool = False,
) -> Any:
    """A ModelPatcher, or None when stopped.

    disable_dynamic: without paging of weights; ComfyUI asks for that when it loads a model once more, for its
    trainer, for LoRA hooks and for further cards. Raises BadFileError, ConfigError or MissingLibraryError.
    """
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(ROOM_FOR_ROUNDING, device)
    tensors = read_fp8_model(
        request.path,
        request.scheme,
        loras=request.loras,
        upcast_fp8=request.upcast_fp8,
        device=device,
        emit=emit,
        should_stop=should_stop,
    )
    if tensors is None:
        return None
    state: dict[str, Any] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        state[name] = quantised_tensor(tensor) if isinstance(tensor, ScaledWeight) else tensor
    load = comfy.sd.load_diffusion_model_state_dict
    patcher = load(
        state, model_options={"custom_operations": ScaledFp8Operations}, **_known(load, disable_dynamic)
    )
    if patcher is None:
        raise BadFileError(f"{request.path} is of a kind that this version of ComfyUI does not know.")
    patcher = with_patches_in_use(patcher)
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_fp8_model, (request,))
    return patcher


def _known(load: Callable[..., Any], disable_dynamic: bool) -> dict[str, Any]:
    """Older versions have no paging, and no argument to turn it off."""
    known = "disable_dynamic" in inspect.signature(load).parameters
    return {"disable_dynamic": disable_dynamic} if known else {}
