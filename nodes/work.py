"""The core's jobs inside ComfyUI's process: the one place where a node leaves what ComfyUI has set up."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from comfy import model_management
from comfy_execution.utils import get_executing_context

from musubi_core.errors import MusubiError

from . import running

ACCELERATE = "ACCELERATE_"  # names of environment variables that settle device and precision of a process


class NodeError(RuntimeError):
    """A message of the core for the user. It holds no frame of the work, so no tensor stays in memory."""


@contextlib.contextmanager
def work(
    node: Any, name: str, commands: Sequence[running.Command] = (), *, frees: bool = True
) -> Iterator[running.Job]:
    """Room for a job of the core, watched and commanded by pages.

    node: the node's class while it executes. name: for people. frees: first make room by unloading ComfyUI's
    models. Gradients are possible inside, and afterwards all memory is given back. After Cancel the block
    ends as ComfyUI expects it, once the job has saved; what the user can mend leaves as NodeError.
    """
    context = get_executing_context()
    prompt = "" if context is None else context.prompt_id
    failure = ""
    try:
        with (
            running.job(str(node.hidden.unique_id), name, prompt_id=prompt, commands=commands) as job,
            _room(frees),
        ):
            yield job
            job.raise_if_cancelled()
    except MusubiError as error:
        failure = str(error)
    finally:
        _give_memory_back()
    if failure:  # outside of the handler: its exception would keep the frames of the job, and their tensors
        raise NodeError(failure)


def device() -> str:
    """Where ComfyUI computes, also under --cpu on a machine with a card."""
    return str(model_management.get_torch_device())


@contextlib.contextmanager
def _room(frees: bool) -> Iterator[None]:
    if frees:
        model_management.unload_all_models()
        model_management.soft_empty_cache()
    with _own_accelerate(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def _own_accelerate() -> Iterator[None]:
    """Device and precision as ComfyUI has them, whatever other jobs or packs told accelerate before.

    accelerate keeps its choice for the whole process; ours is made new for each job and taken back.
    """
    from accelerate import PartialState

    told = {name: value for name, value in os.environ.items() if name.startswith(ACCELERATE)}
    before = dict(PartialState._shared_state)
    for name in told:
        del os.environ[name]
    PartialState._reset_state()
    if model_management.cpu_mode():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        PartialState._reset_state()
        PartialState._shared_state.update(before)
        os.environ.pop("ACCELERATE_USE_CPU", None)
        os.environ.update(told)


def _give_memory_back() -> None:
    gc.collect()
    model_management.soft_empty_cache()
