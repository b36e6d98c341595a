"""torch.compile of the network, given up with one line when it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from musubi_core.config import nearest
from musubi_core.errors import ConfigError
from musubi_core.events import Listener, Warned, ignore
from musubi_core.models.compile_options import CompileOptions

T = TypeVar("T")
DYNAMIC = {"auto": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Lets one module run compiled, or plain."""

    on: Callable[[], None]
    off: Callable[[], None]


class Compiled:
    """The modules that were compiled. Compilation happens when they are called with a new kind of input."""

    def __init__(self, switches: Sequence[Switch] = (), emit: Listener = ignore) -> None:
        """switches: one for each module, all on."""
        self._switches = tuple(switches)
        self._emit = emit

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, the modules are plain ones: inputs of other shapes would change how they are compiled."""
        for switch in self._switches:
            switch.off()
        try:
            yield
        finally:
            for switch in self._switches:
                switch.on()

    def attempt(self, work: Callable[[], T], held: Tensor) -> T:
        """Do `work`, which adds to `held`; when the compiler fails, do it again with plain modules."""
        if not self._switches:
            return work()
        from torch._dynamo import exc

        # Of more sizes than there may be versions, with --compile_fullgraph; not derived from the others.
        limit = getattr(exc, "FailOnRecompileLimitHit", ())
        before = held.clone()
        try:
            return work()
        except limit:
            reason = "batches have more sizes than --compile_cache_size_limit allows"
        except (exc.TorchDynamoException, ImportError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        self._emit(Warned(text=f"torch.compile failed, so the run goes on without it, slower: {reason}"))
        for switch in self._switches:
            switch.off()
        self._switches = ()
        held.copy_(before)
        return work()


def compile_network(
    options: CompileOptions, models: Sequence[nn.Module], blocks: Sequence[nn.Module], emit: Listener
) -> Compiled:
    """Mark the blocks, or the whole models, for compilation. Raises ConfigError for an unknown backend."""
    if options.compile:
        if options.compile_cache_size_limit:
            torch._dynamo.config.cache_size_limit = options.compile_cache_size_limit
        arguments: dict[str, Any] = {
            "backend": _backend(options.compile_backend, "--compile_backend"),
            "dynamic": DYNAMIC[options.compile_dynamic],
            "fullgraph": options.compile_fullgraph,
            "mode": options.compile_mode,
        }
        return Compiled([_compile_forward(block, _known(arguments)) for block in blocks], emit)
    if options.whole:
        arguments = {
            "backend": _backend(options.dynamo_backend.lower(), "--dynamo_backend"),
            "dynamic": options.dynamo_dynamic or None,
            "fullgraph": options.dynamo_fullgraph,
            "mode": options.dynamo_mode,
        }
        return Compiled([_compile_call(model, _known(arguments)) for model in models], emit)
    return Compiled()


@contextlib.contextmanager
def backend_switches(options: CompileOptions) -> Iterator[None]:
    """torch's switches for NVIDIA cards as the options say, and as they were afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    if options.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if options.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


def _compile_forward(block: nn.Module, arguments: dict[str, Any]) -> Switch:
    """Compile what a block does, but not its own hooks: in one of them, block swap brings its weights in."""
    switch = Switch(
        on=partial(setattr, block, "forward", torch.compile(block.forward, **arguments)),
        off=partial(delattr, block, "forward"),
    )
    switch.on()
    return switch


def _compile_call(module: nn.Module, arguments: dict[str, Any]) -> Switch:
    """Compile a module with all that hangs on it."""
    module.compile(**arguments)
    name = "_compiled_call_impl"
    return Switch(
        on=partial(setattr, module, name, getattr(module, name)), off=partial(setattr, module, name, None)
    )


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without the mode, unless the compiler knows modes: only inductor does."""
    modes = arguments["backend"] == "inductor" and arguments["mode"] != "default"
    return {name: value for name, value in arguments.items() if name != "mode" or modes}


def _backend(name: str, option: str) -> str:
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        near = nearest(name, known) or sorted(known)
        raise ConfigError(
            f"{option} {name} is not a compiler of torch {torch.__version__}: {', '.join(near)}."
        )
    return name
