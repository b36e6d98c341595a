"""Watching ComfyUI's sampling runs of a MODEL, without touching the network."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from musubi_core.sampling.evaluation import COND, UNCOND
from musubi_core.sampling.magcache_batch import Asked

from .block_span import Call, call_of

KEY = "musubi_magcache"
log = logging.getLogger("musubi")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRun:
    """A run that begins. sigmas: noise levels, the last one is where it ends. noise_at: of the schedule, from
    0 to 1. size: height and width of the latent. references, masked: see `known_networks.Facts`.
    """

    sigmas: tuple[float, ...]
    noise_at: Callable[[float], float]
    size: tuple[int, int]
    references: bool
    masked: bool


class Watcher(Protocol):
    """What is told of the runs of a MODEL. It must hold settings only, until a run begins."""

    def begin(self, run: SamplingRun) -> None: ...

    def evaluate(self, executor: Any, call: Call) -> Any:
        """Answer instead of the network, by calling `executor` or otherwise."""
        ...

    def end(self, *, complete: bool) -> None:
        """Let go of everything that the run brought."""
        ...

    def fresh(self) -> Watcher:
        """The same settings and no run."""
        ...


class _Holder:
    """Keeps a watcher in model_options. Old versions of ComfyUI copy what is there, runs included."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def __deepcopy__(self, memo: dict[int, Any]) -> _Holder:
        return _Holder(self.watcher.fresh())


def watched(model: Any, watcher: Watcher) -> Any:
    """A clone of a MODEL whose runs `watcher` sees, instead of one that saw them before."""
    model = model.clone()
    options = copy.copy(model.model_options)
    options["transformer_options"] = {**options.get("transformer_options", {}), KEY: _Holder(watcher)}
    model.model_options = options
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _run), (WrappersMP.DIFFUSION_MODEL, _evaluation)):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def unwatched(model: Any) -> Any:
    """A clone of a MODEL whose runs nobody sees."""
    model = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.DIFFUSION_MODEL):
        model.remove_wrappers_with_key(kind, KEY)
    return model


def asked_in(call: Call) -> list[Asked]:
    """The conditionings of a call in the order of the batch. Their keys hold for one run."""
    options = call.options
    window = getattr(options.get("context_window"), "index_list", None)
    place: Hashable = tuple(window) if window is not None else None
    shape = tuple(call.x.shape[1:])
    return [
        Asked((uuid, place, shape, call.x.dtype), UNCOND if which else COND)
        for uuid, which in zip(options["uuids"], options["cond_or_uncond"], strict=True)
    ]


def step_of(call: Call) -> int:
    """Which step a call belongs to: the nearest, since some samplers ask between steps and several times."""
    sigmas: Tensor = call.options["sample_sigmas"]
    return int((sigmas[:-1] - call.options["sigmas"][0].to(sigmas)).abs().argmin())


def show_on_node(node: str, text: str) -> None:
    """Write a line to the log, and show it on a node whose execution is long over."""
    log.info(text)
    # Not imported: where no server was started there is no page, and importing it would start half of one.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node:
        server.send_progress_text(text, node)


def _run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's wrapper around a run: noise, latent image, sampler, noise levels, mask and more."""
    guider = executor.class_obj
    noise, _, _, sigmas = args[:4]
    watcher: Watcher = guider.model_options["transformer_options"][KEY].watcher
    mask = args[4] if len(args) > 4 else kwargs.get("denoise_mask")
    conds = [cond for group in guider.conds.values() for cond in group]
    sampling = guider.model_patcher.get_model_object("model_sampling")
    watcher.begin(
        SamplingRun(
            sigmas=tuple(float(one) for one in sigmas),
            noise_at=lambda place: float(sampling.percent_to_sigma(place)),
            size=(int(noise.shape[-2]), int(noise.shape[-1])),
            references=any(cond.get("reference_latents") for cond in conds),
            masked=mask is not None,
        )
    )
    complete = False
    try:
        answer = executor(*args, **kwargs)
        complete = True
        return answer
    finally:
        watcher.end(complete=complete)


@torch.compiler.disable(recursive=False)
def _evaluation(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's wrapper around the forward of the network.

    Not compiled, as what it decides differs from step to step; a compiled network behind it stays so.
    """
    call = call_of(executor.class_obj, args, kwargs)
    holder = None if call is None else call.options.get(KEY)
    if call is None or holder is None:
        return executor(*args, **kwargs)
    return holder.watcher.evaluate(executor, call)
