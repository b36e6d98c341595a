"""A loaded model that draws one prompt after the other."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from musubi_core.device.memory import empty_cache
from musubi_core.events import Event, Listener, Note, Preview, Progress, ShouldStop
from musubi_core.generation.conditions import Conditions
from musubi_core.generation.draw import OnStep, draw, look_away
from musubi_core.generation.glances import glances
from musubi_core.generation.loading import hang_beside, load_frozen, load_with_merged, watcher
from musubi_core.generation.magcache import magcache
from musubi_core.generation.memory import DRAWING, enough_memory
from musubi_core.generation.networks import Networks
from musubi_core.generation.opening import OpenedModel
from musubi_core.generation.outputs import write_frames
from musubi_core.models.compiling import Compiled, backend_switches, compile_network
from musubi_core.models.swapping import start_swap
from musubi_core.offload.experts import HOST, Experts
from musubi_core.sampling.solving import Step

PREVIEW = "preview_latent"  # the one file that is replaced as the drawing goes on


class Session:
    """The networks in memory, between entering and leaving."""

    def __init__(self, opened: OpenedModel, emit: Listener, should_stop: ShouldStop) -> None:
        self._opened = opened
        self._emit = emit
        self._should_stop = should_stop
        self._stack = contextlib.ExitStack()
        self._networks: Networks | None = None
        self._compiled = Compiled()

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as stack, enough_memory("loading the model", DRAWING):
            self._load(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._networks, self._compiled = None, Compiled()
        self._stack.close()
        empty_cache(self._opened.device)

    def draw(self, conditions: Conditions, stage: str, folder: Path) -> Tensor | None:
        """The clean latent, (1, ...) float32 on the device; None when stopped.

        stage: named in the progress. folder: for what a calibration run measures, and for previews.
        """
        networks = self._networks
        assert networks is not None  # between entering and leaving
        options = self._opened.config.magcache

        def work() -> Tensor | None:
            with magcache(options, networks, conditions, folder=folder, tell=self._emit) as wrapper:
                return draw(
                    networks,
                    conditions,
                    wrapper=wrapper,
                    on_step=self._on_step(networks, conditions, stage, folder),
                    should_stop=self._should_stop,
                )

        self._emit(Progress(stage=stage, done=0, total=conditions.settings.taken_steps))
        with enough_memory("drawing", DRAWING):
            return self._compiled.attempt(work, held=torch.zeros(1))

    def _load(self, stack: contextlib.ExitStack) -> None:
        opened, device = self._opened, self._opened.device
        models = [
            self._network(side, HOST if side and expert.offload else device, stack)
            for side, expert in enumerate(opened.experts)
        ]
        experts = Experts(models, device=device, waits=[expert.offload for expert in opened.experts])
        compiling = opened.config.compile
        stack.enter_context(backend_switches(compiling))
        blocks = [block for model in models for block in opened.spec.blocks(model)]
        self._compiled = compile_network(compiling, models, blocks, self._emit)
        self._networks = Networks(
            spec=opened.spec,
            options=opened.arch.train,
            experts=opened.experts,
            at_work=experts.at_work,
            device=device,
            autocast=None if opened.dtype is torch.float32 else opened.dtype,
        )

    def _network(self, side: int, device: torch.device, stack: contextlib.ExitStack) -> nn.Module:
        """One network with its LoRAs, its blocks swapped as asked."""
        opened, loras = self._opened, self._opened.loras[side]
        expert = opened.experts[side]
        request = replace(
            opened.load_request(expert, device), watch=watcher(expert, self._emit, self._should_stop)
        )
        name = f"{expert.name} model" if expert.name else "model"
        if opened.config.loras.lora_mode == "merge":
            return self._swapped(
                load_with_merged(opened.spec, request, loras, self._emit, name=name), device, stack
            )
        model = self._swapped(load_frozen(opened.spec, request, self._emit, name=name), device, stack)
        for network, lora in zip(
            hang_beside(opened.spec, model, loras, device=opened.device, dtype=opened.dtype),
            loras,
            strict=True,
        ):
            stack.callback(network.remove)
            text = f"{lora.path.name} works beside {len(network.adapters)} layers of the {name}."
            self._emit(Note(text=text))
        return model

    def _swapped(self, model: nn.Module, device: torch.device, stack: contextlib.ExitStack) -> nn.Module:
        options = self._opened.config.model.swap
        swap = start_swap(self._opened.spec, options, model, device)
        stack.callback(swap.release)
        for line in swap.lines(pinned=options.use_pinned_memory_for_block_swap):
            self._emit(Note(text=line))
        return model

    def _on_step(self, networks: Networks, conditions: Conditions, stage: str, folder: Path) -> OnStep:
        steps, every = conditions.settings.taken_steps, self._opened.config.output.preview_latent_every

        def show(event: Event) -> None:
            if isinstance(event, Preview):
                write_frames(folder, PREVIEW, event.frames, fps=event.fps, as_images=False, facts={})
            self._emit(event)

        look = glances(networks, show, title=stage, every=every) if every else look_away

        def on_step(step: Step) -> None:
            self._emit(Progress(stage=stage, done=step.index + 1, total=steps))
            look(step)

        return on_step
